"""What would go wrong without a word: outputs that are not the head's, state dicts that overwrite the backbone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from piggyback.errors import TaskStateError


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a network takes or returns: in containers, dataclasses and attributes of objects.

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


def check_state_dict(
    state: Mapping[str, Any],
    held: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    trained: Collection[str],
) -> None:
    """Raise TaskStateError where ``state`` would overwrite what ``held`` has of the backbone and its tasks.

    What a MultiTaskModel holds lives in task files, so all has to be as it is, but for what a task in training may
    change: the entries of ``trained``, and those with a ``base`` weight, which have to be that weight times a mask.
    """
    for name, now in held.items():
        value = state.get(name)
        if not isinstance(value, Tensor) or value.shape != now.shape or name in trained:
            continue  # what does not fit at all is an error of torch's own
        value = value.to(now.device, now.dtype)
        if name in base:
            right = bool(((value == base[name]) | (value == 0) | (value == -base[name])).all())
        else:
            right = torch.equal(value.nan_to_num(), now.nan_to_num())
        if not right:
            raise TaskStateError(
                f"load_state_dict: {name!r} is not what the model holds: a MultiTaskModel's backbone stays as it came "
                "and its tasks live in task files; use load_task(file), start_task() before a training is resumed, or "
                "load the backbone's weights before it is given to MultiTaskModel"
            )
