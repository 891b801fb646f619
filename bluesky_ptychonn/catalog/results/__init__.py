"""Reconstructions and labels in the catalog: written, verified, read back, drawn."""
