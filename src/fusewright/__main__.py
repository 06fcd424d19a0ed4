"""`python -m fusewright`: the command line."""

from fusewright.cli import run_and_exit

if __name__ == "__main__":
    run_and_exit()
