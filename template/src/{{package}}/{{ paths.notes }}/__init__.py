"""Notes on items, in the other databases: an example to read, and delete as `items` is."""
