"""The version of the package, as it is installed; pyproject.toml is its only source."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("avalanche-cetl")
except PackageNotFoundError:  # a copy of the repository on the path, not installed
    __version__ = "0+unknown"
