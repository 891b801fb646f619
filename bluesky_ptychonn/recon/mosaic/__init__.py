"""Patches to one image: stitching, refinement by physics, tuning of the probe."""
