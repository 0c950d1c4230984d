"""The configuration: what can be set, how it is read, and secrets, which are read when needed."""
