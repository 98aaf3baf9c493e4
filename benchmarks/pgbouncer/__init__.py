"""Ways to work behind PgBouncer: which are right, and what they cost."""
