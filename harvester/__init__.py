"""Follow carbon-credit orders at Lune and file their certificates, durably and exactly once."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lune-harvester")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
