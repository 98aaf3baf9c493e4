"""Side-by-side measurements; each folder is one command, and says which."""
