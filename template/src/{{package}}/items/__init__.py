"""Items: an example. Read it, then delete this package, its test and its migration."""
