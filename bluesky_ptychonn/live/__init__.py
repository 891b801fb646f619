"""The callback, its worker and their session: reconstruct while a scan runs."""
