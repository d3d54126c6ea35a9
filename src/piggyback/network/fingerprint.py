"""Fingerprints: which weights, to the bit, a task was learned on."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from piggyback.errors import BackboneError

IGNORED = "num_batches_tracked"
"""A counter that batch norm keeps beside its statistics; it changes no output."""


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 (hex) of a tensor's dtype, shape and values in C order, whatever its device or layout.

    >>> tensor_digest(torch.zeros(2, 3)) == tensor_digest(torch.zeros(3, 2))
    False
    """
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    if plain.numel():
        digest.update(plain.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(
    module: nn.Module, names: Collection[str], head: str | None = None
) -> tuple[str, dict[str, str]]:
    """Return the fingerprint of the whole backbone and of each weight in ``names``.

    The whole covers every entry of the state dict but those under ``head`` and batch norm's counters.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    >>> whole, weights = fingerprint(net, ["0.weight"], head="1")
    >>> nn.init.zeros_(net[1].weight); fingerprint(net, ["0.weight"], head="1")[0] == whole  # doctest: +ELLIPSIS
    Parameter...
    True
    """
    digests = digests_of(module)
    return whole_of(digests, head), {name: digests[name] for name in names}


def digests_of(module: nn.Module) -> dict[str, str]:
    """Return the digest of each entry of the state dict but batch norm's counters, by name, in order of the names."""
    digests = {}
    for name, tensor in sorted(module.state_dict().items()):
        if name.endswith(IGNORED) or not isinstance(tensor, Tensor):
            continue
        if is_lazy(tensor) or tensor.is_meta:
            raise BackboneError(
                f"tensor {name!r} has no values yet: expected a backbone whose weights are all there; "
                "run it once on a batch, or load its weights, before it is frozen"
            )
        digests[name] = tensor_digest(tensor)
    return digests


def whole_of(digests: Mapping[str, str], head: str | None = None) -> str:
    """Return the fingerprint of a backbone with these ``digests_of`` it, those under ``head`` left out.

    >>> whole_of({"0.weight": "ab", "1.weight": "cd"}, head="1") == whole_of({"0.weight": "ab"})
    True
    """
    whole = hashlib.sha256()
    for name, digest in digests.items():
        if head is None or not name.startswith(f"{head}."):
            whole.update(f"{name}\0{digest}\n".encode())
    return whole.hexdigest()
