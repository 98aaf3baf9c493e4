"""Notes on items, in the other databases: an example. Read it, then delete this package."""
