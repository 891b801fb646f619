"""Plans."""

from bluesky_ptychonn import ptycho_scan, rel_ptycho_scan, rel_sparse_ptycho_scan, sparse_ptycho_scan
