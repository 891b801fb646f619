"""One run from documents to a finished reconstruction."""
