"""What the daemon serves."""
