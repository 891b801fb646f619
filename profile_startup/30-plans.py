"""Plans. A sparse one obeys the card of the model at work when it is given `model=live.model`."""

from bluesky_ptychonn import ptycho_scan, rel_ptycho_scan, rel_sparse_ptycho_scan, sparse_ptycho_scan
