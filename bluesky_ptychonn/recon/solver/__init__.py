"""An existing iterative solver, and the labels made by it."""
