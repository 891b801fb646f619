"""Runs as they lie in a catalog: which data are frames and positions, and how to read them."""
