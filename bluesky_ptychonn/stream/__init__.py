"""Documents and catalogs: the live callback, its worker, and what a user reads back from Tiled."""
