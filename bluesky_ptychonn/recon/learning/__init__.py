"""Learning on from finished runs: intake, candidate, judgement."""

from bluesky_ptychonn.moved import former

__getattr__ = former(__name__)
