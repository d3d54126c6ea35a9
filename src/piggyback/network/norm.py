"""Normalisation layers: which tensors a task with trained normalisation carries."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from piggyback.network.fingerprint import IGNORED

ACROSS_POSITIONS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm),
)
"""Layers that normalise over the positions of an image, or over a batch."""
NORM_TYPES = (*ACROSS_POSITIONS, nn.LayerNorm, nn.RMSNorm)


def is_norm(layer: nn.Module) -> bool:
    """Return whether a layer normalises: torch's own kinds, and others that are called a norm and only scale.

    Families bring their own: LlamaRMSNorm, T5LayerNorm, LayerNorm2d. What tells them from a block with "norm" in its
    name is that all their parameters are vectors of one length, held by themselves.

    >>> import torch
    >>> class MyRMSNorm(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.weight = nn.Parameter(torch.ones(4))
    >>> is_norm(MyRMSNorm()), is_norm(nn.Linear(2, 2))
    (True, False)
    """
    if isinstance(layer, NORM_TYPES):
        return True
    own = list(layer.parameters(recurse=False))
    sizes = {tuple(param.shape) for param in own}
    named = "norm" in type(layer).__name__.lower()
    return (
        named
        and len(sizes) == 1
        and own[0].squeeze().ndim <= 1
        and not any(True for _ in layer.children())
    )


def norm_modules(module: nn.Module, head: str) -> dict[str, nn.Module]:
    """Return the normalisation layers outside the head, by name.

    >>> list(norm_modules(nn.Sequential(nn.BatchNorm2d(2), nn.Linear(2, 2)), head="1"))
    ['0']
    """
    return {
        name: child
        for name, child in module.named_modules()
        if is_norm(child) and name != head and not name.startswith(f"{head}.")
    }


def is_transformer(module: nn.Module, head: str) -> bool:
    """Return whether a network normalises the features of each position, as transformers do, and no whole batch.

    >>> is_transformer(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)), head="2")
    True
    >>> is_transformer(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2)), head="2")
    False
    """
    norms = norm_modules(module, head).values()
    return bool(norms) and not any(isinstance(layer, ACROSS_POSITIONS) for layer in norms)


def computing_modules(module: nn.Module, head: str) -> list[nn.Module]:
    """Return the parametrizations outside the head, such as spectral norm's: in eval mode they change nothing."""
    return [
        child
        for name, child in module.named_modules()
        if isinstance(child, ParametrizationList) and not name.startswith(f"{head}.")
    ]


def norm_tensors(module: nn.Module, head: str, *, counters: bool = False) -> dict[str, Tensor]:
    """Return the layers' own parameters and statistics by state-dict name; not copies.

    ``counters`` adds batch norm's step counters, which change no output but belong to the module's content.
    """
    found = {}
    for name, child in norm_modules(module, head).items():
        for key, tensor in child.state_dict(keep_vars=True).items():
            if counters or key != IGNORED:
                found[f"{name}.{key}" if name else key] = tensor
    return found
