"""Plan: recognise, decide, the plan file, and collapsing groups into local functions."""
