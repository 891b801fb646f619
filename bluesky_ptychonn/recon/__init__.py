"""From detector counts to object patches and mosaics. Knows torch; knows no Bluesky, ophyd or Tiled."""
