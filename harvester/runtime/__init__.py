"""The service: the daemon and its loops, the one-shot drain, and what watches them."""
