"""The shared vocabulary of vidon: preprocessing, stream contract, bundle, recipe, errors, progress, CLI."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("vidon")
except PackageNotFoundError:  # a bare checkout that was never installed
    __version__ = "0+unknown"
