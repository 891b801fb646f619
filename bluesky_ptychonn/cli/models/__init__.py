"""``ptychonn models``: what each of its commands does is in the module of its name."""
