"""What several commands share: the catalog they name, the options of a reconstruction, a session of their own."""
