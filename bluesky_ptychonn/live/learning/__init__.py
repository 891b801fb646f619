"""Learning beside a beamline: watches finished runs, trains, promotes."""
