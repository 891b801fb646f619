"""Live neural ptychography for Bluesky: reconstruct while you scan, and scan only as densely as needed."""
