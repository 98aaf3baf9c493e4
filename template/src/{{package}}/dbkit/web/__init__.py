"""What the kit adds to an application."""
