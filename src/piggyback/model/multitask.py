"""One frozen backbone, many tasks: what a user holds.

task = masks + head + normalisation        a call:  lock
                                                      write the task, unless it is in place
backbone, frozen, and its base weights                run the plain module
                                                    unlock
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args, overload

import torch
from torch import Tensor, nn

from piggyback.errors import (
    InputError,
    PiggybackWarning,
    TaskNameError,
    TaskStateError,
    UnknownTaskError,
    check_is,
    near_misses,
)
from piggyback.images.preprocessing import Preprocessing
from piggyback.kinds import KINDS, check_kind, kind_of
from piggyback.kinds.classification import confidence
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.rule import HEAD_LR, MaskRule, ScoreInit, check_learnable, derived_mask_lr
from piggyback.model.checks import check_state_dict, tensors_of
from piggyback.model.choice import Chosen, TaskChoice, Which
from piggyback.model.distance import skill_of_batches
from piggyback.model.heads import (
    check_classes,
    class_names,
    head_kind,
    head_tensors,
    load_head,
    new_head,
)
from piggyback.model.learning import Learning
from piggyback.model.look import aliases, look_of, new_of
from piggyback.model.routing import TaskInference, run_grouped
from piggyback.model.summary import Summary, masks_verdict, summarize
from piggyback.network.backbone import Backbone, BackboneInfo
from piggyback.network.frozen import FrozenBackbone, plain_copy
from piggyback.network.norm import computing_modules, is_transformer, norm_modules
from piggyback.network.select import Selection, left_out
from piggyback.taskfile.checks import check_fits
from piggyback.taskfile.file import load_file, save_file
from piggyback.taskfile.header import check_writable
from piggyback.taskfile.task import KEEP, OWN, NormPolicy, Task, TaskInfo, check_name
from piggyback.texts.preprocessing import Prepares, TextPreprocessing

MUCH = 0.2
"""The share of the weights from which on it is said that the default selection leaves them out."""
_BARE = Task("backbone", masks={}, head={})
"""What the backbone alone is: a task that adds nothing."""


class MultiTaskModel(nn.Module):
    """One frozen backbone that answers for many tasks, each a mask over its weights, a head and its normalisation.

    ``select`` names the weights that tasks mask (see ``select_weights``; default: every convolution and linear
    layer but the classifier), ``head`` the classifier's module (default: found). ``load_backbone`` knows head, source
    and preprocessing of what it returns. The module stays the caller's: its weights are frozen and fingerprinted,
    and ``release`` gives it back as it came.

    Calls from several threads wait for each other, and each gets the answer of its own task. ``model.backbone(x)``,
    past all that, runs on the task that was put in place last, be it by another call: call the model or its methods.
    ``state_dict()`` holds what is live, the weights, head and normalisation of the task that ran last, and no other
    task, tied weights once: save tasks with ``save_task``, and what is being trained by the optimizer's
    ``state_dict()``. The class has the backbone's name, and ``forward`` its parameters, so that trainers see what it
    takes.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10))
    >>> model = MultiTaskModel(net)
    >>> model.start_task("parity", classes=["even", "odd"])
    >>> model(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    >>> task = model.finish_task()
    >>> model(torch.zeros(3, 4), task=None).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        backbone: nn.Module | Backbone,
        *,
        select: Selection = None,
        head: str | None = None,
        source: str = "",
        preprocessing: Prepares | None = None,
    ) -> None:
        own = None
        _check_preprocessing(preprocessing)
        check_is("source", source, str, "a text, such as 'timm:resnet18'")
        if isinstance(backbone, Backbone):
            head, source = head or backbone.head, source or backbone.source
            own = backbone.preprocessing
            backbone = backbone.module
        frozen = FrozenBackbone(backbone, select, head)
        if select is None:
            _tell_left_out(frozen)
        super().__init__()
        self.__class__ = look_of(type(self), type(frozen.module))
        self.register_load_state_dict_pre_hook(_check_loaded)  # type: ignore[no-untyped-call]
        self.register_state_dict_post_hook(_once_each)  # type: ignore[no-untyped-call]
        self.source = source
        # Tasks see whole images, as ``train`` shows them; the publisher's crop is for the backbone's own classes.
        self._preprocessing = preprocessing or (own and own.whole())
        self._prepared = preprocessing is not None  # whether the caller knows of it
        self._frozen = frozen
        self.backbone = frozen.module
        self._heads: dict[str | None, nn.Module] = {None: frozen.head}
        self._tasks: dict[str, Task] = {}  # their masks in the live weights' order of memory
        self._learning: Learning | None = None
        self._in_place: str | Which | None = None  # the task whose weights are live
        self._answered: set[str | None] = {None}  # tasks whose first answer was looked at
        self._running: list[str | None] = []  # tasks of the calls under way, one inside the other
        self._released = False
        self._broken = ""  # what was done to weights of which there is no second copy
        self._choice = TaskChoice()
        self._lock = threading.RLock()
        self.train(self.backbone.training)

    def __repr__(self) -> str:
        network = self.source or type(self.backbone).__name__
        tasks = ", ".join(map(repr, self._tasks)) or "no tasks"
        state = (
            f"active: {self.active_task!r}"
            if self._learning is None
            else f"in training: {self.active_task!r}"
        )
        return (
            f"MultiTaskModel({network}, {len(self.masked_names)} weights masked; {tasks}; {state})"
        )

    # -- tasks held ----------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the backbone as it came, its classifier left out."""
        return self._frozen.fingerprint

    @property
    def preprocessing(self) -> Prepares | None:
        """How images or texts are prepared for tasks: call it with one to get the network's input."""
        self._prepared = True
        return self._preprocessing

    @property
    def head_name(self) -> str:
        """The classifier's module."""
        return self._frozen.head_name

    @property
    def masked_names(self) -> tuple[str, ...]:
        """The weights that new tasks mask."""
        return self._frozen.masked_names

    @property
    def transformer(self) -> bool:
        """Whether masks move as in transformers: see ``mask_lr``."""
        return is_transformer(self.backbone, self.head_name)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks held, in the order they were added."""
        return tuple(self._tasks)

    @property
    def active_task(self) -> str | None:
        """The task that a call of this thread runs; None is the backbone with its own classifier."""
        return self._choice.get() if self._learning is None else self._learning.name

    @property
    def training_task(self) -> str | None:
        """The task in training, between ``start_task`` and ``finish_task``; else None."""
        return None if self._learning is None else self._learning.name

    def get_task(self, name: str) -> Task:
        """Return a task: masks in C order, head, normalisation."""
        with self._lock:
            task = self._tasks[self._known(name)]
            return replace(task, masks=self._frozen.live.to_c_order(task.masks))

    def add_task(self, task: Task, *, head: nn.Module | None = None) -> None:
        """Hold ``task`` too; ``head`` is the module for a custom head's tensors.

        Raises TaskNameError for a name that is taken, BackboneMismatchError for a task of other weights.
        """
        check_is("task", task, Task, "a Task; load_task takes a file")
        with self._lock, torch.inference_mode(False):
            self._not_learning("add a task")
            self._not_running("add a task")
            self._new_name(task.name)
            self._new_head(head)
            self._check_fits(task)
            self._keep(task, load_head(task, self._frozen.head, head))

    def delete_task(self, name: str) -> None:
        """Forget a task; other threads that had chosen it get UnknownTaskError."""
        with self._lock:
            self._known(name)
            self._not_running("delete a task")
            if self._in_place == name:
                self._write(None)
            del self._tasks[name], self._heads[name]
            self._answered.discard(name)
            self._choice.forget(name)

    def set_task(self, name: str | None) -> None:
        """Make ``name`` the task of this thread's calls and put its weights in place; None restores the backbone."""
        with self._lock:
            self._not_learning("switch tasks")
            self._not_running("switch tasks")
            self._write(name)
            self._choice.set(name)

    @contextmanager
    def use_task(self, name: str | None) -> Iterator[Self]:
        """Run ``name`` within a ``with`` block, then the task from before; per thread and per coroutine."""
        with self._lock:
            self._not_learning("switch tasks")
            self._write(name)
        try:
            with self._choice.within(name):
                yield self
        finally:
            self._settle()

    @overload
    def forward(self, *args: Any, task: str | Chosen | None = ..., **kwargs: Any) -> Any: ...

    @overload
    def forward(
        self, *args: Any, task: list[str] | tuple[str, ...], **kwargs: Any
    ) -> list[Tensor]: ...

    def forward(
        self, *args: Any, task: str | Sequence[str] | Chosen | None = Which.CHOSEN, **kwargs: Any
    ) -> Any:
        """Return the backbone's output for a task; with a sequence of names, one per sample, a list per sample.

        Concurrent callers each get the answer of their own task. Raises UnknownTaskError for a name not held.
        """
        if task is None or isinstance(task, (str, Which)):
            with self._run(task):
                if self._learning is not None:
                    return self._learning.run(*args, **kwargs)
                output = self.backbone(*args, **kwargs)
                if not torch.compiler.is_compiling() and self._running[-1] not in self._answered:
                    self._check_answered(self._running[-1], output)
                return self._guarded(output, (args, kwargs))
        if not isinstance(task, Sequence):
            raise InputError(f"task={task!r}: expected a name, None, or one name per sample")
        self._not_learning("answer for several tasks")
        for name in task:
            self._known(name)
        return run_grouped(lambda name, a, k: self(*a, task=name, **k), task, args, kwargs)

    if TYPE_CHECKING:
        __call__ = forward  # so that ``model(x, task=[...])`` has the type of its answer too

    def __getattr__(self, name: str) -> Any:
        """Return what only the backbone has: ``config``, ``generate``; its methods run a task as calls do.

        They take ``task=`` too, and hold the lock until they return, so that no other caller switches meanwhile;
        generators and coroutines, which would go on after that, are refused. A module that comes back is a part of
        the backbone: called by itself, it runs on whatever weights are live.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            backbone = self.__dict__.get("_modules", {}).get("backbone")
            if backbone is None or name.startswith("_") or not hasattr(backbone, name):
                raise
        found = getattr(backbone, name)
        if not inspect.ismethod(found) or found.__self__ is not backbone:
            return found

        @functools.wraps(found)
        def run(*args: Any, task: str | Chosen | None = Which.CHOSEN, **kwargs: Any) -> Any:
            with self._run(task):
                output = found(*args, **kwargs)
                if inspect.isgenerator(output) or inspect.iscoroutine(output):
                    output.close()
                    raise self._runs_later(name)
                if inspect.isasyncgen(output):
                    raise self._runs_later(name)
                return output if self._learning else self._guarded(output, (args, kwargs))

        return run

    def _check_answered(self, name: str | None, output: Any) -> None:
        """Raise TaskStateError where a task's first answer has the outputs of the backbone's own head."""
        outputs = getattr(self._frozen.head, "out_features", None)
        task = _BARE if name is None else self._tasks[name]
        shapes = [shape for tensor in tensors_of(output) for shape in tensor.shape[-1:]]
        if task.info.classes and outputs in shapes and len(task.info.classes) not in shapes:
            raise TaskStateError(
                f"task {name!r} has {len(task.info.classes)} outputs, but the network answers with {outputs}, as its "
                f"own head {self.head_name!r} would: it holds that in a list or a function; let it call the module by "
                "its name, or name another with head="
            )
        self._answered.add(name)

    def _runs_later(self, name: str) -> TaskStateError:
        return TaskStateError(
            f"{name}() of the {type(self.backbone).__name__} goes on after it has returned, when another task may be "
            f"in place: call it on bake(task), a network of its own"
        )

    @contextmanager
    def _run(self, task: str | Chosen | None) -> Iterator[None]:
        """Hold the lock with a task in place; a call from inside another puts the outer one's task back."""
        with self._lock:
            name = self.active_task if isinstance(task, Which) else task
            self._write(name)
            self._running.append(name)
            try:
                yield
            finally:
                self._running.pop()
                if self._running:
                    self._write(self._running[-1])

    def _guarded(self, output: Any, given: Any) -> Any:
        """``output`` for what was ``given``; its backward pass raises TaskStateError if another task is in place then.

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

    # -- files and answers ---------------------------------------------------------------------

    def load_task(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        head: nn.Module | None = None,
    ) -> str:
        """Add the task of a file, under ``name`` if given, and return its name; ``head`` as for ``add_task``."""
        task = load_file(path, name, expect=self._frozen.shapes())
        self.add_task(task, head=head)
        return task.name

    def save_task(self, name: str, path: str | os.PathLike[str]) -> None:
        """Write a task to a file, which is replaced in one step."""
        save_file(self.get_task(name), path)

    @torch.no_grad()
    def infer_task(self, *args: Any, at_least: float = 0.0, **kwargs: Any) -> TaskInference:
        """Return, per sample, the task whose head is most sure of it: 1 - entropy / log(classes), highest first.

        None stands for a sample of which no task is sure by ``at_least``, in [0, 1]. It is a guess: a head that was
        never shown other tasks' images may be sure of one, so it works where tasks look unlike each other, and fails
        where they are alike. Choose ``at_least`` on images of your own. The whole batch runs once for each task: with
        n tasks this costs n calls and as many switches.
        """
        names = self.task_names
        if not names:
            raise UnknownTaskError("no tasks to choose from: add_task or load_task first")
        if not (isinstance(at_least, (int, float)) and 0 <= at_least <= 1):
            raise InputError(f"at_least {at_least!r}: expected a number from 0 to 1")
        for name, task in self._tasks.items():
            if task.info.kind in KINDS and kind_of(task.info).per_pixel:
                raise InputError(
                    f"task {name!r} labels every pixel: no task is inferred from that; choose one by its name"
                )
        sure = torch.stack([self._sure(n, self(*args, task=n, **kwargs)) for n in names], dim=1)
        best, which = sure.max(1)
        chosen = [
            names[i] if s >= at_least else None
            for i, s in zip(which.tolist(), best.tolist(), strict=True)
        ]
        return TaskInference(chosen, sure, names)

    def _sure(self, name: str, output: Any) -> Tensor:
        """How sure a task is, by its kind; one that no kind knows is taken for a classification."""
        info = self._tasks[name].info
        kind = kind_of(info) if info.kind in KINDS and info.classes else None
        whole = isinstance(output, Tensor) and kind is not None and output.ndim == kind.dimensions
        return kind.confidence(output) if kind is not None and whole else confidence(output)

    def bake(self, name: str | None) -> nn.Module:
        """Return a plain copy of the backbone with a task's weights, head and normalisation written into it."""
        with self._lock, self.use_task(name):
            return plain_copy(self.backbone)

    def summary(self, name: str | None = None) -> Summary:
        """Return density, entropy and bytes of one task or of all."""
        names = self.task_names if name is None else (self._known(name),)
        return summarize({n: self._tasks[n] for n in names})

    def release(self) -> nn.Module:
        """Return the caller's module bit for bit as it came: weights, classifier, flags; this model has then ended."""
        with self._lock:
            if self._released:
                return self.backbone
            self._not_running("release the network")
            if self._learning is not None:
                self.cancel_task()
            for name in self.task_names:
                self.delete_task(name)
            self._in_place = Which.UNSURE
            self.set_task(None)
            self._released = True
            return self._frozen.give_back()

    # -- learning ------------------------------------------------------------------------------

    def start_task(
        self,
        name: str,
        classes: int | Sequence[str] | None = None,
        *,
        rule: MaskRule | None = None,
        norm: NormPolicy = "frozen",
        head: nn.Module | Literal["keep"] | None = None,
        masks: bool = True,
        kind: str = "classification",
        preprocessing: Prepares | None = None,
        start: Task | None = None,
        units: Sequence[str] = (),
        scaling: Sequence[tuple[float, float]] = (),
    ) -> None:
        """Make the live weights trainable for a new task with a fresh head; until ``finish_task`` it runs alone.

        ``norm="affine"`` lets the task have its own scale and shift in normalisation layers, ``norm="trained"``
        batch norm's statistics too. ``masks=False`` learns a head only. ``head`` replaces the default one, a new
        layer like the backbone's own classifier; ``"keep"`` keeps that one, untrained, for a task that answers as the
        backbone does, such as a causal language model's: it alone needs no ``classes``, and its kind is then "own".

        ``start`` is a task to go on from: its masks, its normalisation, and of its head the rows of classes that are
        here too. Raises InputError where it has another rule, normalisation or head, or masks other weights,
        BackboneMismatchError where it was learned on another backbone.

        ``kind`` says what outputs mean (see ``kinds``), ``classes`` names
        them; ``units`` and ``scaling`` are a regression's, see ``TaskInfo``. Raises InputError for a ``rule`` with a
        form.
        """
        if start is not None:
            check_is("start", start, Task, "a Task")
        rule = rule or (MaskRule() if start is None else start.info.rule)
        check_learnable(rule)
        _check_preprocessing(preprocessing)
        check_is("masks", masks, bool, "True or False")
        check_kind(kind)
        for what, given in (("units", units), ("scaling", scaling)):
            check_is(what, given, (list, tuple), "a list with one for each output")
        with self._lock, torch.inference_mode(False):
            self._not_learning("start another")
            self._not_running("start one")
            self._new_name(name)
            keep = isinstance(head, str) and head == KEEP
            module = self._frozen.head if keep else self._new_head(head)
            if norm not in get_args(NormPolicy):
                raise InputError(
                    f"norm {norm!r}: expected one of {', '.join(get_args(NormPolicy))}"
                )
            if classes is None and not keep:
                raise InputError(
                    f"task {name!r}: no classes: expected a number or a list of names, or head='keep'"
                )
            original, names = self._frozen.head, () if classes is None else class_names(classes)
            module = new_head(original, len(names), kind) if module is None else module
            whole = self._frozen.with_head if keep else self.fingerprint
            digests = self._frozen.digests if masks else {}
            info = TaskInfo(
                kind=OWN if classes is None else kind,
                classes=names,
                rule=rule,
                head_kind=KEEP if keep else head_kind(module, original),
                preprocessing=preprocessing or self._preprocessing,
                backbone=BackboneInfo(self.source, whole, digests),
                units=tuple(units),
                scaling=tuple(tuple(p) if isinstance(p, list) else p for p in scaling),
            )
            check_classes(info, module)
            check_writable(name, info)
            learning = Learning(name, info, self._frozen, module, norm, masks)
            learning.check()
            if start is not None:
                self._check_fits(start)
                learning.check_start(start)
            self._prepared |= preprocessing is not None
            self._write(None)
            self._learning = learning
            if start is not None:
                learning.start_at(start)
            learning.begin()
            self.train(self.training)

    def parameter_groups(
        self, lr: float, head_lr: float | None = None, norm_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Return the groups for a ``MaskOptimizer``, each where it is trained: masked weights, head, normalisation."""
        return self._in_learning().groups(lr, head_lr, norm_lr)

    def optimizer(
        self,
        inner: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        *,
        steps: int | None = None,
        batches: Iterable[Any] | None = None,
        lr: float | None = None,
        head_lr: float | None = None,
        norm_lr: float | None = None,
        **options: Any,
    ) -> MaskOptimizer:
        """Return the ``MaskOptimizer`` of the task in training, with its groups, rule and base weights.

        ``steps``, the number of steps of the whole run, gives the scores the rate that ``mask_lr`` derives and all
        else ``HEAD_LR``, peaks of ``warmup_cosine(optimizer, steps)``; ``lr`` gives the rate of the scores, and of
        all else unless told. ``batches``, of inputs and class labels as in the loop, are run through once to see how
        far the task is from the backbone, as ``train`` does: a far one gets a higher rate. ``options`` are those of
        ``MaskOptimizer`` and of ``inner``.

        Raises InputError where neither or both of ``steps`` and ``lr`` are given, or ``batches`` with ``lr``.
        """
        learning = self._in_learning()
        if (steps is None) == (lr is None) or (batches is not None and lr is not None):
            raise InputError(
                f"steps {steps} and lr {lr}: expected one of them: the number of steps of the run, with batches or "
                "without, or a rate"
            )
        if lr is None:
            start, threshold = options.get("init") or ScoreInit(), learning.info.rule.threshold
            check_is("init", start, ScoreInit, "a ScoreInit")
            steps = cast(int, steps)
            skill = (
                None
                if batches is None
                else skill_of_batches(self, learning.head, batches, learning.info)
            )
            margin = start.margin(threshold)
            lr = derived_mask_lr(steps, skill, self.transformer, margin=margin)
            head_lr = HEAD_LR if head_lr is None else head_lr
            norm_lr = HEAD_LR if norm_lr is None else norm_lr
        return MaskOptimizer(
            learning.groups(lr, head_lr, norm_lr),
            inner,
            rule=learning.info.rule,
            base=self.base_of,
            **options,
        )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the backbone's forward pass in place; a switch of tasks rewrites weights and compiles nothing."""
        self.backbone.compile(*args, **kwargs)

    def base_of(self, param: Tensor) -> Tensor:
        """Return the base weight behind a live parameter, for ``MaskOptimizer(..., base=model.base_of)``."""
        return self._frozen.live.base_of(param)

    def capture(self, **provenance: Any) -> Task:
        """Return the task in training as it stands: its masks are read off the live weights.

        Raises TaskStateError where a live weight is not its base weight times a mask.
        """
        with self._lock:
            return self._in_learning().capture(provenance)

    def finish_task(self, task: Task | None = None) -> Task:
        """Leave training and hold the task, captured now unless given; it becomes the active one.

        Warns where masks were trained and mask nothing: what was learned is the head alone.
        """
        with self._lock:
            learning = self._in_learning()
            self._not_running("finish one")
            if task is not None:
                check_is("task", task, Task, "a Task, such as capture() returns")
            done = learning.capture({}) if task is None else task
            if task is None and learning.trained and (verdict := masks_verdict(done.density)):
                warnings.warn(f"task {done.name!r}: {verdict}", PiggybackWarning, stacklevel=2)
            if task is None and self._preprocessing is not None and not self._prepared:
                warnings.warn(
                    f"task {done.name!r}: nobody asked how the backbone wants its inputs; its file will say "
                    f"{self._preprocessing}: prepare them by model.preprocessing(image or text), or give start_task "
                    "the preprocessing that the loop used",
                    PiggybackWarning,
                    stacklevel=2,
                )
            if done.name != learning.name:
                raise TaskNameError(
                    f"task {done.name!r} given, but {learning.name!r} is in training: "
                    "expected the same name"
                )
            self._check_fits(done)
            head = load_head(done, self._frozen.head, learning.head)
            self.cancel_task()
            self._keep(done, head)
            self.set_task(done.name)
            return done

    def cancel_task(self) -> None:
        """Leave training, drop the task, and restore the one from before."""
        with self._lock:
            learning = self._in_learning()
            self._not_running("cancel one")
            lost = learning.lost()
            learning.end()
            self._learning, self._in_place = None, Which.UNSURE
            self.train(self.training)
            self._settle()
            if lost:
                self._broken = f"weight {lost[0]!r} was trained beside task {learning.name!r}"

    def _in_learning(self) -> Learning:
        if self._learning is None:
            raise TaskStateError("no task is in training: call start_task() first")
        return self._learning

    # -- what lies below -----------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set training mode; normalisation, and heads that are not being learned, stay in eval mode."""
        super().train(mode)
        for part in computing_modules(self.backbone, self.head_name):
            part.eval()
        if self._learning is not None:
            self._learning.set_mode(mode)
            return self
        for layer in norm_modules(self.backbone, self.head_name).values():
            layer.eval()
        for head in self._heads.values():
            head.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with self._lock, torch.inference_mode(False):
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
                    head=head_tensors(task.info, self._heads[name]),
                    coefficients={
                        k: v.to(live.base[k].device)  # float32 in whatever dtype
                        for k, v in task.coefficients.items()
                    },
                )
            placed = self._in_place
            if isinstance(placed, str) and self._tasks[placed].coefficients:
                self._in_place = Which.UNSURE  # in another dtype a form makes other live weights
                self._write(placed)
            if self._learning is None:
                self._frozen.count()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        kind = type(self)
        return new_of, (getattr(kind, "plain", kind), type(self.backbone)), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        del state["_lock"]
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(dict(state))  # type: ignore[no-untyped-call]
        self._lock = threading.RLock()
        if self._learning is None:
            self._frozen.count()

    def _write(self, name: str | None) -> None:
        """Put a task's weights, normalisation and head in place; the caller holds the lock.

        Raises TaskStateError where others changed the weights since; they are then put back.
        """
        self._not_released()
        self._not_broken()
        if self._learning is None and not torch.compiler.is_compiling():
            self._check_untouched()
        if self._learning is not None:
            if name != self._learning.name:
                self._not_learning("run another task")
        elif name != self._in_place:
            task = _BARE if name is None else self._tasks[self._known(name)]
            self._in_place = Which.UNSURE  # an interrupted write must not pass for a whole one
            form, head = task.info.rule.form, self._heads[name]
            self._frozen.write_(task.masks, task.norm, head, task.coefficients, form)
            self._in_place = name

    def _check_untouched(self) -> None:
        """Raise TaskStateError where masked weights are not as this model left them."""
        if (found := self._frozen.changed()) is None:
            return
        name, how = found
        if how == "replaced":
            raise TaskStateError(
                f"weight {name!r} was replaced after the MultiTaskModel was built, as load_state_dict(assign=True) "
                "does: expected the network's own; load its weights first and build the MultiTaskModel last"
            )
        placed, live = self._in_place, self._frozen.live.params
        self._frozen.invalidate_state()
        was = {each: param.detach().clone() for each, param in live.items()}
        moved = self._put_back_head(placed)
        self._in_place = Which.UNSURE
        self._write(None)
        what = f"weight {name!r} was changed by something else than this model, such as the backbone's load_state_dict"
        if not self._frozen.is_whole():
            self._in_place, self._broken = Which.UNSURE, what
            self._not_broken()
        if isinstance(placed, Which):
            return
        self._write(placed)
        if moved or any(not torch.equal(param, was[each]) for each, param in live.items()):
            raise TaskStateError(
                f"{what}; it has been put back. Load weights before MultiTaskModel, and change those of bake(task)"
            )

    def _put_back_head(self, name: str | Which | None) -> bool:
        """Give a task's head the task's tensors again; whether it had others."""
        if not isinstance(name, str):
            return False
        kept, head = self._tasks[name].head, self._heads[name]
        same = all(torch.equal(t, kept[key]) for key, t in head.state_dict().items() if key in kept)
        if not same:
            head.load_state_dict(dict(kept))
        return not same

    def _settle(self) -> None:
        """Put the caller's task in place, for those who use the backbone directly, or that of the call under way."""
        with self._lock:
            if self._learning is None:
                wanted = self._running[-1] if self._running else self.active_task
                self._write(wanted if wanted in self._tasks else None)

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
            info=replace(task.info, preprocessing=self._bound(task)),
            masks=live.to_memory_order(task.masks),
            norm={k: v.to(state[k].device, state[k].dtype) for k, v in task.norm.items()},
            head=head_tensors(task.info, head),
            coefficients={k: v.to(live.base[k].device) for k, v in task.coefficients.items()},
        )

    def _check_fits(self, task: Task) -> None:
        whole = self._frozen.with_head if task.info.head_kind == KEEP else self.fingerprint
        check_fits(task, self._frozen.shapes(), self._frozen.base_state, whole)
        self._bound(task)

    def _bound(self, task: Task) -> Prepares | None:
        """The task's preprocessing with this backbone's tokenizer; BackboneMismatchError for another's."""
        prepared = task.info.preprocessing
        return prepared and prepared.bound(
            self._preprocessing, task.name, task.info.backbone.source
        )

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
                f"task {name!r} already exists: delete_task it first or choose another name"
            )

    def _new_head(self, head: object) -> nn.Module | None:
        if head is not None and not isinstance(head, nn.Module):
            raise InputError(f"head {head!r}: expected a module, or 'keep' for the backbone's own")
        if any(head is held for held in self._heads.values()):
            raise InputError(
                "head: this very module is a head already; pass a new one, or head='keep' for the backbone's own"
            )
        return head

    def _not_released(self) -> None:
        if self._released:
            raise TaskStateError(
                "this MultiTaskModel has given its network back: build another one on what release() returned"
            )

    def _not_broken(self) -> None:
        if self._broken:
            raise TaskStateError(
                f"{self._broken}: no longer the backbone that its tasks were learned on; load the network "
                "anew, its weights before MultiTaskModel"
            )

    def _not_running(self, what: str) -> None:
        if self._running:
            raise TaskStateError(
                f"cannot {what} from inside a call of {self._running[-1]!r}: do it before or after that call"
            )

    def _not_learning(self, what: str) -> None:
        self._not_released()
        if self._learning is not None:
            raise TaskStateError(
                f"cannot {what} while task {self._learning.name!r} is in training: "
                "call finish_task() or cancel_task() first"
            )


def _check_preprocessing(given: object) -> None:
    kinds = (Preprocessing, TextPreprocessing, type(None))
    check_is("preprocessing", given, kinds, "a Preprocessing, which a task file can hold")


def _tell_left_out(frozen: FrozenBackbone) -> None:
    """Warn where much of the network is no convolution or linear layer, so that masks leave it out by default."""
    names, share = left_out(frozen.module, frozen.masked_names, frozen.head_name)
    if share >= MUCH:
        warnings.warn(
            f"{len(names)} matrices with {share:.0%} of the weights are in no convolution or linear layer and are not "
            f"masked: {', '.join(names[:3])}{', ...' if names[3:] else ''}; name them with select= if tasks shall mask "
            "them, too",
            PiggybackWarning,
            stacklevel=3,
        )


def _check_loaded(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Look at a state dict before it is loaded; raises TaskStateError as ``check_state_dict`` does."""
    model = cast(MultiTaskModel, model)
    learning, base = model._learning, {}
    if learning is not None and learning.masked:
        base = {f"backbone.{name}": weight for name, weight in model._frozen.live.base.items()}
    trained = set() if learning is None else {f"backbone.{n}" for n in learning.trained_names()}
    held = {f"backbone.{name}": t for name, t in model.backbone.state_dict().items()}
    for other, first in aliases(held).items():
        if prefix + first in state:
            state.setdefault(prefix + other, state[prefix + first])
        if first in base:
            base[other] = base[first]
        if first in trained:
            trained.add(other)
    own = {k.removeprefix(prefix): value for k, value in state.items() if k.startswith(prefix)}
    check_state_dict(own, held, base, trained)


def _once_each(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """Leave each tensor its first name alone: files of safetensors hold none twice."""
    own = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    for other in aliases(own):
        del state[other]
