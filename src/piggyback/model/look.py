"""What a MultiTaskModel's class shows of its backbone: trainers ask a class what it takes and what it is called."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn

Kind = TypeVar("Kind", bound=nn.Module)


_MADE: weakref.WeakKeyDictionary[type, dict[type, Any]] = weakref.WeakKeyDictionary()


def look_of(model: type[Kind], backbone: type[nn.Module]) -> type[Kind]:
    """Return ``model``, a class, with the name of the backbone's and its ``forward``'s parameters besides ``task``.

    A class that takes no backbone's look, since its own ``forward`` is another or cannot be asked, is returned as is.

    >>> class Model(nn.Module):
    ...     def forward(self, *args, task=None, **kwargs): ...
    >>> list(inspect.signature(look_of(Model, nn.Linear).forward).parameters)
    ['self', 'input', 'task']
    """
    made = _MADE.setdefault(backbone, {})
    if model not in made:
        made[model] = _shown(model, backbone)
    return cast(type[Kind], made[model])


def _shown(model: type[Kind], backbone: type[nn.Module]) -> type[Kind]:
    """The class, made once: pickles and copies of a model are of one class with it."""
    forward: Callable[..., Any] = model.forward
    try:
        own, given = inspect.signature(forward), inspect.signature(backbone.forward)
    except (TypeError, ValueError):  # of a compiled or scripted class
        return model
    if "task" not in own.parameters:
        return model
    taken = [p for name, p in given.parameters.items() if name != "task"]
    place = len(taken) - any(p.kind is p.VAR_KEYWORD for p in taken)
    taken.insert(place, own.parameters["task"])

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    run.__signature__ = given.replace(parameters=taken)  # type: ignore[attr-defined]
    body = {
        "forward": run,
        "__doc__": model.__doc__,
        "__module__": model.__module__,
        "__qualname__": f"{model.__qualname__}[{backbone.__name__}]",
        "plain": model,
    }
    return type(backbone.__name__, (model,), body)


def new_of(model: type[Kind], backbone: type[nn.Module]) -> Kind:
    """Return an empty object of ``look_of``'s class, for a pickle to fill: such a class has no name to be found by."""
    shown = look_of(model, backbone)
    return shown.__new__(shown)
