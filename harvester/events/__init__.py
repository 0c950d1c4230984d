"""The ways to receivers: over HTTP, and by running a command."""
