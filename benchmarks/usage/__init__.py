"""What it costs that a pool knows who uses it."""
