"""Raw runs into the catalog, whatever that does; nothing measured is lost."""
