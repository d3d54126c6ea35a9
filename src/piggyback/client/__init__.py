"""A client of ``piggyback serve``: the engine's answers and errors, over HTTP. Needs no torch and no NumPy."""

from piggyback.client.client import AsyncClient, Client
from piggyback.texts.preprocessing import Text

__all__ = ["AsyncClient", "Client", "Text"]
