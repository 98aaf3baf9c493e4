"""Requests per second of the rendered service beside others, in one run."""
