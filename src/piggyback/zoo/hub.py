"""Model hubs: whether they can be reached, and the error that says what to do when they cannot.

The hubs' own clients retry for up to a minute when there is no network. Asking first, with one
connection, gives an answer in seconds and lets files that are in the cache be used at once.
"""

from __future__ import annotations

import pickle
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError

from piggyback.errors import BackboneError

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

DAMAGED = (pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError)
"""What the zoos raise for a weights file that was cut off, or is another than they expected."""


def reachable(url: str, seconds: float = 4.0) -> bool:
    """Return whether the host of ``url``, or the proxy in front of it, takes a connection in time.

    >>> reachable("http://127.0.0.1:9")
    False
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(host):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        host, port = parts.hostname or "", parts.port or 80
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
        except OSError:
            return
        answers.append(True)

    # A thread, since looking up a name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)


def huggingface_reachable() -> bool:
    """Return whether the Hugging Face hub can be asked: never with HF_HUB_OFFLINE set."""
    return not constants.HF_HUB_OFFLINE and reachable(constants.ENDPOINT)


def cached_weights(repo: str, filename: str | None = None) -> Path | None:
    """Return the cached file of a hub repository, "owner/name" or "owner/name@revision"."""
    name, _, revision = repo.partition("@")
    for candidate in (filename,) if filename else _WEIGHT_FILES:
        found = try_to_load_from_cache(name, candidate, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None


def cached_download(url: str) -> Path | None:
    """Return the file that torch.hub would have stored for ``url``, when it is there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    return path if path.is_file() else None


def not_cached(spec: str, why: str, what: str = "pretrained weights") -> BackboneError:
    """Return the error for files that cannot be had, with the ways out."""
    ways = "or give a file with checkpoint=, or take pretrained=False, or"
    if what != "pretrained weights":
        ways = "or give a local folder, or take"
    return BackboneError(
        f"backbone {spec!r}: no {what} in the cache, and {why}; connect once to fetch it, {ways} "
        "the packaged 'efficientnet_lite0'"
    )


def damaged(spec: str, error: BaseException) -> BackboneError:
    """Return the error for weights that were found and cannot be loaded."""
    return BackboneError(
        f"backbone {spec!r}: its weights do not load ({type(error).__name__}: "
        f"{first_line(error)}); if a download was cut off, delete the cached file and connect again"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, for an error of one line.

    >>> first_line(ValueError("wrong\\nsee the manual"))
    'wrong'
    """
    return str(error).strip().split("\n")[0][:200]
