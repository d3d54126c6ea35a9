"""A client of ``piggyback serve``: the engine's answers and errors, over HTTP, by the standard library alone."""

from piggyback.client.client import Client

__all__ = ["Client"]
