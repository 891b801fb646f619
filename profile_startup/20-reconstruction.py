"""Live reconstruction, after TiledWriter: from here on every ptychography scan is reconstructed while it runs."""

from bluesky_ptychonn import LiveView, reconstructions

live = config.reconstruction.live(catalog)
RE.subscribe(live)
