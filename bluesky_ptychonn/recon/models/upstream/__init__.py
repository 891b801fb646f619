"""Checkpoints that others published, read as what they are."""
