"""What a service declares and opens: databases, their sessions and readers."""
