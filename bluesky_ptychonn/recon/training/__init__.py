"""From data to a model folder."""
