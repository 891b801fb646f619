"""From data to a model folder."""

from bluesky_ptychonn.moved import former

__getattr__ = former(__name__)
