"""Models as files: saved, loaded, told a probe, packed, kept in the user's library."""
