"""The command line."""

from layerwise.cli.main import main

__all__ = ["main"]
