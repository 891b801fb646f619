"""Physics of far-field ptychography: geometry, forward model, simulator. Knows nothing of the layers above."""
