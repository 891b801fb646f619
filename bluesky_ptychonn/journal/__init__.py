"""The one durable log of documents: written in the RunEngine's thread, read by whoever follows."""
