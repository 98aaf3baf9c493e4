"""What differs between servers and drivers."""
