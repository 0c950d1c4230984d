"""Follow carbon-credit orders at Lune and file their certificates, durably and exactly once."""

__version__ = "0.1.0"
