"""Live reconstruction: from here on every ptychography scan is reconstructed while it runs.

Subscribed after the raw writer, whose files it follows: each document is written to disk once.
"""

from bluesky_ptychonn import LiveView, reconstructions

live = config.reconstruction.live(catalog, writer)
RE.subscribe(live)
