"""``ptychonn train``: a model for a probe, or for many."""
