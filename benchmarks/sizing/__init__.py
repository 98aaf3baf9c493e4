"""A real load on the pool, against the waits that the adviser predicts for it."""
