"""Runs that are in the catalog already: reconstructed, labelled, filled in."""
