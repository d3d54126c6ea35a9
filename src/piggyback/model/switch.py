"""Whose weights are in place: the tasks held, the lock, the switch, and checks that nobody else wrote weights."""

from __future__ import annotations

import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from piggyback.errors import (
    InputError,
    TaskNameError,
    TaskStateError,
    UnknownTaskError,
    near_misses,
)
from piggyback.model.choice import Chosen, TaskChoice, Which
from piggyback.model.heads import head_tensors
from piggyback.model.learning import Learning
from piggyback.model.tensors import aliases, tensors_of
from piggyback.network.frozen import FrozenBackbone
from piggyback.taskfile.task import Task, check_name

_BARE = Task("backbone", masks={}, head={})
"""What the backbone alone is: a task that adds nothing."""


class _DirectCall:
    """Hook on the backbone for calls that pass the model by. A copy of the backbone has no model and does nothing."""

    switch: weakref.ref[TaskSwitch] | None = None

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        switch = None if self.switch is None else self.switch()
        jit: Any = torch.jit
        exporting = getattr(torch.compiler, "is_exporting", bool)()  # not in torch 2.6
        if switch is not None and (exporting or jit.is_tracing()):
            raise TaskStateError(
                f"a program exported from this {type(module).__name__} would hold the weights that every task is "
                "written into, and answer for the last one: export model.bake(task), a network of its own"
            )
        if switch is not None and not torch.compiler.is_compiling():
            switch.prepare_direct()

    def __reduce__(self) -> tuple[Any, ...]:
        return _DirectCall, ()


class TaskSwitch:
    """The tasks held on one frozen backbone, of which one at a time is in place, for one caller at a time.

    Whoever calls a method that puts weights in place holds ``lock``.
    """

    def __init__(self, frozen: FrozenBackbone) -> None:
        self.frozen = frozen
        self.tasks: dict[str, Task] = {}  # their masks in the live weights' order of memory
        self.heads: dict[str | None, nn.Module] = {None: frozen.head}
        self.learning: Learning | None = None
        self.choice = TaskChoice()
        self._lock, self._process = threading.RLock(), os.getpid()
        self.ended = ""  # the error for whoever goes on after the network was given back
        self._in_place: str | Which | None = None  # the task whose weights are live
        self._answered: set[str | None] = {None}  # tasks whose first answer was looked at
        self._running: list[str | None] = []  # tasks of the calls under way, one inside the other
        self._thread = 0  # whose calls those are
        self._last: dict[int, str | None] = {}  # the task that each thread has chosen or run last
        self._direct = _DirectCall()
        self.hook = frozen.module.register_forward_pre_hook(self._direct, prepend=True)
        self._direct.switch = weakref.ref(self)
        self._broken = ""  # the error where others changed weights of which there is no second copy

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._last = {}
        self._direct.switch = weakref.ref(self)
        if self.hook.id not in self.frozen.module._forward_pre_hooks:  # as of a copied GraphModule
            self.hook = self.frozen.module.register_forward_pre_hook(self._direct, prepend=True)
        if self.learning is None:
            self.frozen.count()
        else:
            self.learning.note_bases()
        if self._process != os.getpid():
            self._part_from_parent()

    @property
    def lock(self) -> threading.RLock:
        """The lock; TaskStateError in a forked process where a thread that was left behind had it."""
        if self._process != os.getpid():
            if not self._lock.acquire(blocking=False):
                raise TaskStateError(
                    "this process was forked while another thread ran the model, whose weights may be half written: "
                    "build the MultiTaskModel in the new process, or start that by spawn"
                )
            self._lock.release()
            self._part_from_parent()
        return self._lock

    def _part_from_parent(self) -> None:
        """Give this process live weights of its own, where it got them in memory that it shares with another one."""
        module = self.frozen.module
        tensors: list[Any] = [*module.parameters(), *module.buffers()]
        shared = [tensor for tensor in tensors if tensor.is_shared()]
        if self.learning is None and shared:
            self.frozen.invalidate_state()
            self._in_place = Which.UNSURE  # the other process may have switched since
        elif any(tensor.device.type == "cpu" for tensor in shared):
            raise TaskStateError(
                f"task {self.in_learning().name!r} is in training on weights that this process shares with the one "
                "that started it, and both would step them: call start_task() in each process"
            )
        for tensor in shared:
            tensor.data = tensor.data.clone()
        self._process = os.getpid()

    # -- tasks held ----------------------------------------------------------------------------

    @property
    def active(self) -> str | None:
        """The task that a call of this thread runs."""
        return self.choice.get() if self.learning is None else self.learning.name

    def known(self, name: str) -> str:
        """Return ``name``; raises UnknownTaskError where no task is held by it."""
        if not isinstance(name, str) or name not in self.tasks:
            held = ", ".join(map(repr, self.tasks)) or "none"
            raise UnknownTaskError(
                f"unknown task {name!r}: the model holds {held}{near_misses(str(name), self.tasks)}"
            )
        return name

    def in_c_order(self, name: str) -> Task:
        """Return a task as it was given, its masks in C order."""
        task = self.tasks[self.known(name)]
        return replace(task, masks=self.frozen.live.to_c_order(task.masks))

    def check_new(self, name: str) -> None:
        """Raise TaskNameError for a name that no task can have, or one has already."""
        if check_name(name) in self.tasks:
            raise TaskNameError(
                f"task {name!r} already exists: delete_task it first or choose another name"
            )

    def new_head(self, head: object) -> nn.Module | None:
        """Return ``head``; raises InputError for what is no module, or another task's."""
        if head is not None and not isinstance(head, nn.Module):
            raise InputError(f"head {head!r}: expected a module, or 'keep' for the backbone's own")
        if any(head is held for held in self.heads.values()):
            raise InputError(
                "head: this very module is a head already; pass a new one, or head='keep' for the backbone's own"
            )
        return head

    def keep(self, task: Task, head: nn.Module) -> None:
        """Hold a task that was checked, its tensors where the backbone's are."""
        if task.masks.keys() - self.frozen.live.base.keys():
            self._write(None)
            self.frozen.live.cover(task.masks)
            self.settle()
        self.heads[task.name] = head.eval()
        self.tasks[task.name] = self._placed(task)

    def _placed(self, task: Task) -> Task:
        """The task, masks in C order, with its tensors where the backbone's are and masks in the order of memory."""
        live, state = self.frozen.live, self.frozen.base_state
        return replace(
            task,
            masks=live.to_memory_order(task.masks),
            norm={k: v.to(state[k].device, state[k].dtype) for k, v in task.norm.items()},
            head=head_tensors(task.info, self.heads[task.name]),
            coefficients={k: v.to(live.base[k].device) for k, v in task.coefficients.items()},
        )

    def delete(self, name: str) -> None:
        """Forget a task; in place of its weights come the backbone's."""
        with self.lock:
            self.known(name)
            self.not_running("delete a task")
            if self._in_place == name:
                self._write(None)
            del self.tasks[name], self.heads[name]
            self._answered.discard(name)
            self.choice.forget(name)

    # -- which is in place ---------------------------------------------------------------------

    def set(self, name: str | None) -> None:
        """Put a task in place, which is the caller's from here on."""
        with self.lock:
            self.not_learning("switch tasks")
            self.not_running("switch tasks")
            self._write(name)
            self.choice.set(name)
            self._last[threading.get_ident()] = name

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Let a task be the caller's within a ``with`` block; takes the lock for the switches alone."""
        with self.lock:
            self.not_learning("switch tasks")
            self._write(name)
            self._last[threading.get_ident()] = name
        try:
            with self.choice.within(name):
                yield
        finally:
            with self.lock:
                self.settle()
                self._last[threading.get_ident()] = self.active

    @contextmanager
    def run(self, task: str | Chosen | None) -> Iterator[None]:
        """Hold the lock with a task in place; a call from inside another puts the outer one's task back."""
        with self.lock:
            name = self.active if isinstance(task, Which) else task
            self._write(name)
            self._running.append(name)
            self._thread = threading.get_ident()
            self._last[self._thread] = name
            try:
                yield
            finally:
                self._running.pop()
                if self._running:
                    self._write(self._running[-1])

    def as_call(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method of the backbone that runs as calls do, with ``task=`` and the lock until it returns.

        What goes on after that, generators and coroutines, raises TaskStateError.
        """

        @functools.wraps(method)
        def run(*args: Any, task: str | Chosen | None = Which.CHOSEN, **kwargs: Any) -> Any:
            with self.run(task):
                output = method(*args, **kwargs)
                later = inspect.isgenerator(output) or inspect.iscoroutine(output)
                if later:
                    output.close()
                if later or inspect.isasyncgen(output):
                    raise TaskStateError(
                        f"{name}() of the {type(self.frozen.module).__name__} goes on after it has "
                        "returned, when another task may be in place: call it on bake(task), a network of its own"
                    )
                return output if self.learning else self.guard(output, (args, kwargs))

        return run

    def prepare_direct(self) -> None:
        """Put the caller's task in place for a call of the backbone itself, which holds no lock.

        Raises TaskStateError where another thread has run another task and may switch meanwhile.
        """
        thread = threading.get_ident()
        if self.learning is not None or self.ended or (self._running and self._thread == thread):
            return
        if len(self._last) > 1:
            alive = {each.ident for each in threading.enumerate()} - {thread}
            others = {name for ident, name in list(self._last.items()) if ident in alive}
            for other in others - {self.active}:
                raise TaskStateError(
                    f"{type(self.frozen.module).__name__} called directly for {self.active!r}, while another thread "
                    f"runs {other!r} and may switch meanwhile: call the MultiTaskModel or its methods, which wait for "
                    "their turn"
                )
        with self.lock:
            self.settle()

    def settle(self) -> None:
        """Put the caller's task in place, for those who use the backbone directly, or that of the call under way."""
        if self.learning is None:
            wanted = self._running[-1] if self._running else self.active
            self._write(wanted if wanted in self.tasks else None)

    def learn(self, learning: Learning, start: Task | None) -> None:
        """Let a task that was checked be learned, from ``start`` if given: until ``stop`` it alone is in place."""
        self._write(None)
        self.learning = learning
        learning.begin(start)

    def stop(self) -> None:
        """Leave the task that was learned; in place of its weights come those of the caller's task."""
        learning = self.in_learning()
        self.not_running("cancel one")
        lost = learning.lost()
        learning.end()
        self.learning, self._in_place = None, Which.UNSURE
        self.settle()
        if lost:
            self._broken = (
                f"weight {lost[0]!r} was trained beside task {learning.name!r}: no longer the backbone that tasks were "
                "learned on; load the network anew"
            )

    def give_back(self) -> nn.Module:
        """Forget all tasks and return the module as it came."""
        for name in tuple(self.tasks):
            self.delete(name)
        self._in_place = Which.UNSURE
        self.set(None)
        self.hook.remove()
        self.ended = "this MultiTaskModel has given its network back: build another one on what release() returned"
        return self.frozen.give_back()

    def follow(self, move: Callable[[Tensor], Tensor]) -> None:
        """Move what is held besides the module, after ``nn.Module._apply`` moved that."""
        tasks = [self.in_c_order(name) for name in self.tasks]
        self.frozen.apply(move)
        for head in self.heads.values():
            head._apply(move)  # type: ignore[no-untyped-call]
        self.tasks = {task.name: self._placed(task) for task in tasks}
        placed = self._in_place
        if isinstance(placed, str) and self.tasks[placed].coefficients:
            self._in_place = Which.UNSURE  # in another dtype a form makes other live weights
            self._write(placed)
        if self.learning is None:
            self.frozen.count()

    def _write(self, name: str | None) -> None:
        """Put a task's weights, normalisation and head in place.

        Raises TaskStateError where others changed the weights since; they are then put back.
        """
        if error := self.ended or self._broken:
            raise TaskStateError(error)
        if self.learning is None and not torch.compiler.is_compiling():
            self._check_untouched()
        if self.learning is not None:
            if name != self.learning.name:
                self.not_learning("run another task")
        elif name != self._in_place:
            task = _BARE if name is None else self.tasks[self.known(name)]
            self._in_place = Which.UNSURE  # an interrupted write must not pass for a whole one
            form, head = task.info.rule.form, self.heads[name]
            self.frozen.write_(task.masks, task.norm, head, task.coefficients, form)
            self._in_place = name
        if self.learning is None and not torch.compiler.is_compiling():
            self.frozen.rest()

    def checked(self, output: Any) -> Any:
        """Return a call's ``output``; TaskStateError where a task's first one is that of the backbone's own head."""
        name = self._running[-1]
        if name in self._answered or torch.compiler.is_compiling():
            return output
        outputs = getattr(self.frozen.head, "out_features", None)
        classes = len(self.tasks[name].info.classes) if name is not None else 0
        shapes = [shape for tensor in tensors_of(output) for shape in tensor.shape[-1:]]
        if classes and outputs in shapes and classes not in shapes:
            raise TaskStateError(
                f"task {name!r} has {classes} outputs, but the network answers with {outputs}, as its own head "
                f"{self.frozen.head_name!r} would: it holds that in a list or a function; let it call the module by "
                "its name, or name another with head="
            )
        self._answered.add(name)
        return output

    # -- what others changed -------------------------------------------------------------------

    def guard(self, output: Any, given: Any) -> Any:
        """Return ``output`` for what was ``given``; its backward pass raises TaskStateError if another task is live.

        Autograd itself notices changed weights that it saved; recomputed ones, as in activation checkpointing, it
        would take from the other task.
        """
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            placed = self._in_place

            def check(gradient: Tensor) -> None:
                if self._in_place != placed:
                    raise TaskStateError(
                        f"backward through task {placed!r} while {self._in_place!r} is in place: call backward() "
                        "before another task runs"
                    )

            known = {id(tensor) for tensor in tensors_of(given)}
            for tensor in tensors_of(output):
                if tensor.grad_fn is not None and id(tensor) not in known:
                    tensor.register_hook(check)  # type: ignore[no-untyped-call]
        return output

    def check_loaded(self, model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Raise TaskStateError where ``state`` would overwrite what ``model`` has of the backbone and its tasks.

        What a MultiTaskModel holds lives in task files, so all has to be as it is, but for what a task in training
        changes: what it trains, and masked weights, which have to be base weights times a mask.
        """
        base: Mapping[str, Tensor] = {}
        trained: Collection[str] = ()
        if self.learning is not None:
            base = self.frozen.live.base if self.learning.masked else {}
            trained = self.learning.trained_names()
        held = model.get_submodule("backbone").state_dict()
        first_name = aliases(held)
        for name, now in held.items():
            first, key = first_name.get(name, name), f"{prefix}backbone.{name}"
            if (given := f"{prefix}backbone.{first}") in state:
                state.setdefault(key, state[given])
            value = state.get(key)
            if not isinstance(value, Tensor) or value.shape != now.shape or first in trained:
                continue  # what does not fit at all is an error of torch's own
            value = value.to(now.device, now.dtype)
            if first in base:
                weight = base[first]
                right = bool(((value == weight) | (value == 0) | (value == -weight)).all())
            else:
                right = torch.equal(value.nan_to_num(), now.nan_to_num())
            if not right:
                raise TaskStateError(
                    f"load_state_dict: 'backbone.{name}' is not what the model holds: a MultiTaskModel's backbone "
                    "stays as it came and its tasks live in task files; use load_task(file), start_task() before a "
                    "training is resumed, or load the backbone's weights before it is given to MultiTaskModel"
                )

    def _check_untouched(self) -> None:
        """Raise TaskStateError where masked weights are not as this model left them."""
        if (name := self.frozen.changed()) is None:
            return
        placed, live = self._in_place, self.frozen.live.params
        self.frozen.invalidate_state()
        was = {each: param.detach().clone() for each, param in live.items()}
        moved = False
        if isinstance(placed, str):  # its head has the task's tensors, or gets them again
            kept, head = self.tasks[placed].head, self.heads[placed]
            state = head.state_dict()
            moved = any(not torch.equal(t, kept[k]) for k, t in state.items() if k in kept)
            if moved:
                head.load_state_dict(dict(kept))
        self._in_place = Which.UNSURE
        self._write(None)
        what = f"weight {name!r} was changed by something else than this model, such as the backbone's load_state_dict"
        if not self.frozen.is_whole():
            self._in_place = Which.UNSURE
            self._broken = (
                f"{what}: no longer the backbone that its tasks were learned on; load the network anew, its weights "
                "before MultiTaskModel"
            )
            raise TaskStateError(self._broken)
        if isinstance(placed, Which):
            return
        self._write(placed)
        if moved or any(not torch.equal(param, was[each]) for each, param in live.items()):
            raise TaskStateError(
                f"{what}; it has been put back. Load weights before MultiTaskModel, and change those of bake(task)"
            )

    # -- what may be done now ------------------------------------------------------------------

    def in_learning(self) -> Learning:
        """Return the task that is being learned; raises TaskStateError where none is."""
        if self.learning is None:
            raise TaskStateError("no task is in training: call start_task() first")
        return self.learning

    def not_learning(self, what: str) -> None:
        """Raise TaskStateError where a task is in training, or the network was given back."""
        if self.ended:
            raise TaskStateError(self.ended)
        if self.learning is not None:
            raise TaskStateError(
                f"cannot {what} while task {self.learning.name!r} is in training: call finish_task() or cancel_task() "
                "first"
            )

    def not_running(self, what: str) -> None:
        """Raise TaskStateError from inside a call."""
        if self._running:
            raise TaskStateError(
                f"cannot {what} from inside a call of {self._running[-1]!r}: do it before or after that call"
            )
