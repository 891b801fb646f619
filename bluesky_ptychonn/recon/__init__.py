"""From detector counts to object patches and mosaics. Knows torch; knows no Bluesky, ophyd or Tiled."""

from bluesky_ptychonn.processors import wait_passively

wait_passively()  # here: whatever imports torch for us imports this package first
