"""How far an image is to be believed: trust of a frame, verdict on a run."""
