"""The network families, and the lift before them."""
