"""SQLAlchemy's queue pool and the kit's, side by side in one run, on a real PostgreSQL."""
