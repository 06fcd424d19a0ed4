"""INT4 weight-only: Linears whose weights are stored in four bits, with a scale per block."""
