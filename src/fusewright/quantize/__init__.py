"""Quantizing: placement decided, pairs inserted, weights scaled."""
