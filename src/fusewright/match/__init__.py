"""The pattern language and the matcher."""
