"""Measurements of the product, each with one command; results lie in ``results/``."""
