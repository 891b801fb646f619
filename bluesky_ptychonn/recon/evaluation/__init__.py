"""How good a network is, on scans it never saw."""
