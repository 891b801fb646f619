"""What lies in Tiled, and the way to it: connection, runs, raw writer, results, registry of models."""
