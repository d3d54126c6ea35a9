"""What is in a network's outputs and state dict: tensors, whether they come from the head, under which names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a network takes or returns: in containers, dataclasses and attributes of objects.

    >>> import torch
    >>> [len(each) for each in tensors_of({"logits": torch.zeros(2), "hidden": [torch.zeros(3), None]})]
    [2, 3]
    """
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from tensors_of(part)
    elif not isinstance(output, (nn.Module, type)) and hasattr(output, "__dict__"):
        for part in vars(output).values():  # not what these hold: an object may lead back to itself
            if isinstance(part, (Tensor, Mapping, list, tuple)):
                yield from tensors_of(part)


def reaches(outputs: Iterable[Tensor], head: nn.Module) -> bool:
    """Return whether gradients of the outputs come to the head, by autograd's graph: a hook would compile anew.

    A re-entrant checkpoint hides what is in it; True then.
    """
    wanted = {id(param) for param in head.parameters()}
    nodes, seen = [tensor.grad_fn for tensor in outputs], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (
            id(getattr(node, "variable", None)) in wanted
            or node.name() == "CheckpointFunctionBackward"
        ):
            return True
        nodes.extend(following for following, _ in node.next_functions)
    return False


def aliases(state: dict[str, Tensor]) -> dict[str, str]:
    """Return the later names of tensors that stand under several in a state dict, by the first of each.

    >>> import torch
    >>> one = torch.zeros(2)
    >>> aliases({"a": one, "b": one, "c": torch.zeros(2)})
    {'b': 'a'}
    """
    first: dict[Any, str] = {}
    found = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.numel() and not tensor.is_meta:
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if first.setdefault(place, name) != name:
                found[name] = first[place]
    return found


def once_each(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """Leave each tensor of a model's state dict its first name alone: files of safetensors hold none twice."""
    own = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    for other in aliases(own):
        del state[other]
