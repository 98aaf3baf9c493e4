"""What pools say of themselves, and to whom."""
