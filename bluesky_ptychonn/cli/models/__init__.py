"""``ptychonn models``: list, show, move and compare models; decide on champions."""
