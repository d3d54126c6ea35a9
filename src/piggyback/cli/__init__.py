"""The command ``piggyback``."""

from piggyback.cli.app import main

__all__ = ["main"]
