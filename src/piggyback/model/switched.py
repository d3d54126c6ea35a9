"""A module that holds tasks and runs the one that its caller asks for.

task = masks + head + normalisation        a call:  lock
                                                      write the task, unless it is in place
backbone, frozen, and its base weights                run the plain module
                                                    unlock
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import Any, Literal, Self

from torch import Tensor, nn

from piggyback.errors import (
    InputError,
    TaskNameError,
    TaskStateError,
    UnknownTaskError,
    near_misses,
)
from piggyback.model.choice import TaskChoice
from piggyback.model.heads import load_head
from piggyback.model.learning import Learning
from piggyback.model.routing import run_grouped
from piggyback.network.frozen import FrozenBackbone
from piggyback.network.norm import norm_modules
from piggyback.taskfile.checks import check_fits
from piggyback.taskfile.task import Task, check_name

_BARE = Task("backbone", masks={}, head={})
"""What the backbone alone is: a task that adds nothing."""


class Which(Enum):
    """What stands where a task's name could."""

    CHOSEN = "the task that the caller has chosen"
    UNSURE = "a write that did not come to its end"


class SwitchedModel(nn.Module):
    """Runs a frozen backbone with the masks, head and normalisation of one task at a time."""

    def __init__(self, frozen: FrozenBackbone) -> None:
        super().__init__()
        self._frozen = frozen
        self.backbone = frozen.module
        self._heads: dict[str | None, nn.Module] = {None: frozen.head}
        self._tasks: dict[str, Task] = {}  # their masks in the live weights' order of memory
        self._learning: Learning | None = None
        self._in_place: str | Which | None = None  # the task whose weights are live
        self._choice = TaskChoice()
        self._lock = threading.RLock()
        self.train(self.backbone.training)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the backbone as it came, its classifier left out."""
        return self._frozen.fingerprint

    @property
    def head_name(self) -> str:
        """The classifier's module."""
        return self._frozen.head_name

    @property
    def masked_names(self) -> tuple[str, ...]:
        """The weights that new tasks mask."""
        return self._frozen.masked_names

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks held, in the order they were added."""
        return tuple(self._tasks)

    @property
    def active(self) -> str | None:
        """The task that a call of this thread runs; None is the backbone with its own classifier."""
        return self._choice.get() if self._learning is None else self._learning.name

    def get_task(self, name: str) -> Task:
        """Return a task: masks in C order, head, normalisation."""
        with self._lock:
            task = self._tasks[self._known(name)]
            return replace(task, masks=self._frozen.live.to_c_order(task.masks))

    def add_task(self, task: Task, *, head: nn.Module | None = None) -> None:
        """Hold ``task`` too; ``head`` is the module for a custom head's tensors.

        Raises TaskNameError for a name that is taken, BackboneMismatchError for a task of other weights.
        """
        with self._lock:
            self._not_learning("add a task")
            self._new_name(task.name)
            self._new_head(head)
            self._check_fits(task)
            self._keep(task, load_head(task, self._frozen.head, head))

    def delete_task(self, name: str) -> None:
        """Forget a task; other threads that had chosen it get UnknownTaskError."""
        with self._lock:
            self._known(name)
            if self._in_place == name:
                self._write(None)
            del self._tasks[name], self._heads[name]
            self._choice.forget(name)

    def set_task(self, name: str | None) -> None:
        """Make ``name`` the task of this thread's calls and put its weights in place; None restores the backbone."""
        with self._lock:
            self._not_learning("switch tasks")
            self._write(name)
            self._choice.set(name)

    @contextmanager
    def task(self, name: str | None) -> Iterator[Self]:
        """Run ``name`` within a ``with`` block, then the task from before; per thread and per coroutine."""
        with self._lock:
            self._not_learning("switch tasks")
            self._write(name)
        try:
            with self._choice.within(name):
                yield self
        finally:
            self._settle()

    def forward(
        self,
        *args: Any,
        task: str | Sequence[str] | Literal[Which.CHOSEN] | None = Which.CHOSEN,
        **kwargs: Any,
    ) -> Any:
        """Return the backbone's output for a task; with a sequence of names, one per sample, a list per sample.

        Concurrent callers each get the answer of their own task. Raises UnknownTaskError for a name not held.
        """
        if task is None or isinstance(task, (str, Which)):
            with self._lock:
                self._write(self.active if isinstance(task, Which) else task)
                return self.backbone(*args, **kwargs)
        if not isinstance(task, Sequence):
            raise InputError(f"task={task!r}: expected a name, None, or one name per sample")
        self._not_learning("answer for several tasks")
        for name in task:
            self._known(name)
        return run_grouped(lambda name, a, k: self(*a, task=name, **k), task, args, kwargs)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; normalisation, and heads that are not being learned, stay in eval mode."""
        super().train(mode)
        if self._learning is not None:
            self._learning.set_mode(mode)
            return self
        for layer in norm_modules(self.backbone, self.head_name).values():
            layer.eval()
        for head in self._heads.values():
            head.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with self._lock:
            live = self._frozen.live
            logical = {name: live.to_c_order(task.masks) for name, task in self._tasks.items()}
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            self._frozen.apply(fn)
            for head in self._heads.values():
                head._apply(fn)  # type: ignore[no-untyped-call]
            for name, task in self._tasks.items():
                self._tasks[name] = replace(
                    task,
                    masks=live.to_memory_order(logical[name]),
                    norm={key: fn(tensor) for key, tensor in task.norm.items()},
                    head=self._heads[name].state_dict(),
                    coefficients={
                        k: v.to(live.base[k].device)  # float32 in whatever dtype
                        for k, v in task.coefficients.items()
                    },
                )
            placed = self._in_place
            if isinstance(placed, str) and self._tasks[placed].coefficients:
                self._in_place = Which.UNSURE  # in another dtype a form makes other live weights
                self._write(placed)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        del state["_lock"]
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(dict(state))  # type: ignore[no-untyped-call]
        self._lock = threading.RLock()

    def _write(self, name: str | None) -> None:
        """Put a task's weights, normalisation and head in place; the caller holds the lock."""
        if self._learning is not None:
            if name != self._learning.name:
                self._not_learning("run another task")
        elif name != self._in_place:
            task = _BARE if name is None else self._tasks[self._known(name)]
            self._in_place = Which.UNSURE  # an interrupted write must not pass for a whole one
            form, head = task.info.rule.form, self._heads[name]
            self._frozen.write_(task.masks, task.norm, head, task.coefficients, form)
            self._in_place = name

    def _settle(self) -> None:
        """Put the caller's task in place, for those who use the backbone directly."""
        with self._lock:
            if self._learning is None:
                self._write(self.active if self.active in self._tasks else None)

    def _keep(self, task: Task, head: nn.Module) -> None:
        """Hold a task that was checked, its tensors where the backbone's are."""
        live, state = self._frozen.live, self._frozen.base_state
        if task.masks.keys() - live.base.keys():
            self._write(None)
            live.cover(task.masks)
            self._settle()
        self._heads[task.name] = head.eval()
        self._tasks[task.name] = replace(
            task,
            masks=live.to_memory_order(task.masks),
            norm={k: v.to(state[k].device, state[k].dtype) for k, v in task.norm.items()},
            head=head.state_dict(),
            coefficients={k: v.to(live.base[k].device) for k, v in task.coefficients.items()},
        )

    def _check_fits(self, task: Task) -> None:
        check_fits(task, self._frozen.shapes(), self._frozen.base_state, self.fingerprint)

    def _known(self, name: str) -> str:
        if not isinstance(name, str) or name not in self._tasks:
            held = ", ".join(map(repr, self._tasks)) or "none"
            raise UnknownTaskError(
                f"unknown task {name!r}: the model holds {held}{near_misses(str(name), self._tasks)}"
            )
        return name

    def _new_name(self, name: str) -> None:
        if check_name(name) in self._tasks:
            raise TaskNameError(
                f"task {name!r} is there already: delete_task it first or pick another name"
            )

    def _new_head(self, head: nn.Module | None) -> None:
        if head is not None and not isinstance(head, nn.Module):
            raise InputError(f"head {head!r}: expected a module")
        if any(head is held for held in self._heads.values()):
            raise InputError("head: this very module is a head already; pass a new one")

    def _not_learning(self, what: str) -> None:
        if self._learning is not None:
            raise TaskStateError(
                f"cannot {what} while task {self._learning.name!r} is in training: "
                "call finish_task() or cancel_task() first"
            )
