"""One frozen backbone, many tasks: what a user holds.

task = masks + head + normalisation        a call:  lock
                                                      write the task, unless it is in place
backbone, frozen, and its base weights                run the plain module
                                                    unlock
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self, cast, overload

import torch
from torch import Tensor, nn

from piggyback.errors import InputError, PiggybackWarning, TaskNameError, check_is
from piggyback.images.preprocessing import Preprocessing
from piggyback.kinds import check_kind
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.rule import HEAD_LR, MaskRule, ScoreInit, check_learnable, derived_mask_lr
from piggyback.model.choice import Chosen, Which
from piggyback.model.distance import skill_of_batches
from piggyback.model.heads import class_names, head_kind, load_head, new_head
from piggyback.model.learning import Learning
from piggyback.model.look import look_of, new_of
from piggyback.model.routing import TaskInference, infer, run_grouped
from piggyback.model.summary import Summary, masks_verdict
from piggyback.model.switch import TaskSwitch
from piggyback.model.tensors import once_each
from piggyback.network.backbone import Backbone, BackboneInfo
from piggyback.network.frozen import FrozenBackbone, plain_copy
from piggyback.network.norm import computing_modules, is_transformer, norm_modules
from piggyback.network.select import Selection, warn_left_out
from piggyback.taskfile.checks import check_fits
from piggyback.taskfile.file import load_file, save_file
from piggyback.taskfile.task import KEEP, OWN, NormPolicy, Task, TaskInfo
from piggyback.texts.preprocessing import Prepares, TextPreprocessing


class MultiTaskModel(nn.Module):
    """One frozen backbone that answers for many tasks, each a mask over its weights, a head and its normalisation.

    ``select`` names the weights that tasks mask (see ``select_weights``; default: every convolution and linear
    layer but the classifier), ``head`` the classifier's module (default: found). ``load_backbone`` knows head, source
    and preprocessing of what it returns. The module stays the caller's: its weights are frozen and fingerprinted,
    and ``release`` gives it back as it came.

    Calls from several threads wait for each other, and each gets the answer of its own task. ``model.backbone(x)``
    runs the caller's task too, but waits for nobody: it raises TaskStateError where another thread runs another task.
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
            warn_left_out(frozen.module, frozen.masked_names, frozen.head_name)
        super().__init__()
        self.__class__ = look_of(type(self), type(frozen.module))
        self.source = source
        # Tasks see whole images, as ``train`` shows them; the publisher's crop is for the backbone's own classes.
        self._preprocessing = preprocessing or (own and own.whole())
        self._prepared = preprocessing is not None  # whether the caller knows of it
        self._frozen = frozen
        self._switch = TaskSwitch(frozen)
        self.backbone = frozen.module
        self.register_load_state_dict_pre_hook(self._switch.check_loaded)  # type: ignore[no-untyped-call]
        self.register_state_dict_post_hook(once_each)  # type: ignore[no-untyped-call]
        self.train(self.backbone.training)

    def __repr__(self) -> str:
        network = self.source or type(self.backbone).__name__
        tasks = ", ".join(map(repr, self.task_names)) or "no tasks"
        state = "active" if self.training_task is None else "in training"
        return (
            f"MultiTaskModel({network}, {len(self.masked_names)} weights masked; {tasks}; "
            f"{state}: {self.active_task!r})"
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
        return tuple(self._switch.tasks)

    @property
    def active_task(self) -> str | None:
        """The task that a call of this thread runs; None is the backbone with its own classifier."""
        return self._switch.active

    @property
    def training_task(self) -> str | None:
        """The task in training, between ``start_task`` and ``finish_task``; else None."""
        return None if self._switch.learning is None else self._switch.learning.name

    def get_task(self, name: str) -> Task:
        """Return a task: masks in C order, head, normalisation."""
        with self._switch.lock:
            return self._switch.in_c_order(name)

    def add_task(self, task: Task, *, head: nn.Module | None = None) -> None:
        """Hold ``task`` too; ``head`` is the module for a custom head's tensors.

        Raises TaskNameError for a name that is taken, BackboneMismatchError for a task of other weights.
        """
        check_is("task", task, Task, "a Task; load_task takes a file")
        with self._switch.lock, torch.inference_mode(False):
            self._switch.not_learning("add a task")
            self._switch.not_running("add a task")
            self._switch.check_new(task.name)
            self._switch.new_head(head)
            fitting = self._fitting(task)
            self._switch.keep(fitting, load_head(task, self._frozen.head, head))

    def delete_task(self, name: str) -> None:
        """Forget a task; other threads that had chosen it get UnknownTaskError."""
        self._switch.delete(name)

    def set_task(self, name: str | None) -> None:
        """Make ``name`` the task of this thread's calls and put its weights in place; None restores the backbone."""
        self._switch.set(name)

    @contextmanager
    def use_task(self, name: str | None) -> Iterator[Self]:
        """Run ``name`` within a ``with`` block, then the task from before; per thread and per coroutine.

        Generators share their caller's choice: in one that yields within the block, call with ``task=`` instead.
        """
        with self._switch.use(name):
            yield self

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
            with self._switch.run(task):
                if self._switch.learning is not None:
                    return self._switch.learning.run(*args, **kwargs)
                output = self._switch.checked(self.backbone(*args, **kwargs))
                return self._switch.guard(output, (args, kwargs))
        if not isinstance(task, Sequence):
            raise InputError(f"task={task!r}: expected a name, None, or one name per sample")
        self._switch.not_learning("answer for several tasks")
        for name in task:
            self._switch.known(name)
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
        own = inspect.ismethod(found) and found.__self__ is backbone
        return self._switch.as_call(name, found) if own else found

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
        infos = {name: task.info for name, task in self._switch.tasks.items()}
        return infer(infos, lambda name: self(*args, task=name, **kwargs), at_least)

    def bake(self, name: str | None) -> nn.Module:
        """Return a plain copy of the backbone with a task's weights, head and normalisation written into it."""
        with self._switch.lock, torch.inference_mode(False), self.use_task(name):
            baked = plain_copy(self.backbone)
            baked._forward_pre_hooks.pop(
                self._switch.hook.id, None
            )  # a GraphModule's copy has none
            return baked

    def summary(self, name: str | None = None) -> Summary:
        """Return density, entropy and bytes of one task or of all."""
        names = self.task_names if name is None else (self._switch.known(name),)
        return Summary({n: self._switch.tasks[n] for n in names})

    def release(self) -> nn.Module:
        """Return the caller's module bit for bit as it came: weights, classifier, flags; this model has then ended."""
        with self._switch.lock:
            if self._switch.ended:
                return self.backbone
            self._switch.not_running("release the network")
            if self.training_task is not None:
                self.cancel_task()
            return self._switch.give_back()

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
        here too, with their scaling unless that is given. Raises InputError where it has another rule, normalisation,
        head or unit, or masks other weights, BackboneMismatchError where it was learned on another backbone.

        ``kind`` says what outputs mean (see ``kinds``), ``classes`` names them; ``units`` and ``scaling`` are a
        regression's, see ``TaskInfo``. Raises InputError for a ``rule`` with a form.
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
        with self._switch.lock, torch.inference_mode(False):
            self._switch.not_learning("start another")
            self._switch.not_running("start one")
            self._switch.check_new(name)
            keep = isinstance(head, str) and head == KEEP
            module = self._frozen.head if keep else self._switch.new_head(head)
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
            if start is not None and not scaling:
                info = info.going_on(start.info)
            learning = Learning(name, info, self._frozen, module, norm, masks)
            learning.check()
            if start is not None:
                self._fitting(start)
                learning.check_start(start)
            self._prepared |= preprocessing is not None
            self._switch.learn(learning, start)
            self.train(self.training)

    def parameter_groups(
        self, lr: float, head_lr: float | None = None, norm_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Return the groups for a ``MaskOptimizer``, each where it is trained: masked weights, head, normalisation."""
        return self._switch.in_learning().groups(lr, head_lr, norm_lr)

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
        learning = self._switch.in_learning()
        for name in options.keys() & {"rule", "base"}:
            raise InputError(
                f"{name} {options[name]!r:.100}: expected none, it is the task's: start_task(rule=...)"
            )
        if (steps is None) == (lr is None) or (batches is not None and lr is not None):
            raise InputError(
                f"steps {steps} and lr {lr}: expected one of them: the number of steps of the run, with batches or "
                "without, or a rate"
            )
        if lr is None:
            init = options.get("init") or ScoreInit()
            check_is("init", init, ScoreInit, "a ScoreInit")
            skill = None
            if batches is not None:
                skill = skill_of_batches(self, learning.head, batches, learning.info)
            margin = init.margin(learning.info.rule.threshold)
            lr = derived_mask_lr(cast(int, steps), skill, self.transformer, margin=margin)
            head_lr = HEAD_LR if head_lr is None else head_lr
            norm_lr = HEAD_LR if norm_lr is None else norm_lr
        groups, rule = learning.groups(lr, head_lr, norm_lr), learning.info.rule
        return MaskOptimizer(groups, inner, rule=rule, base=self.base_of, **options)

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
        with self._switch.lock:
            return self._switch.in_learning().capture(provenance)

    def finish_task(self, task: Task | None = None) -> Task:
        """Leave training and hold the task, captured now unless given; it becomes the active one.

        Warns where masks were trained and mask nothing: what was learned is the head alone.
        """
        with self._switch.lock:
            learning = self._switch.in_learning()
            self._switch.not_running("finish one")
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
                    f"task {done.name!r} given, but {learning.name!r} is in training: expected the same name"
                )
            fitting = self._fitting(done)
            head = load_head(done, self._frozen.head, learning.head)
            self.cancel_task()
            self._switch.keep(fitting, head)
            self.set_task(done.name)
            return done

    def cancel_task(self) -> None:
        """Leave training, drop the task, and restore the one from before."""
        with self._switch.lock:
            self._switch.stop()
            self.train(self.training)

    # -- what lies below -----------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set training mode; normalisation, and heads that are not being learned, stay in eval mode."""
        super().train(mode)
        for part in computing_modules(self.backbone, self.head_name):
            part.eval()
        if self._switch.learning is not None:
            self._switch.learning.set_mode(mode)
            return self
        layers = norm_modules(self.backbone, self.head_name)
        for part in (*layers.values(), *self._switch.heads.values()):
            part.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with self._switch.lock, torch.inference_mode(False):
            self._frozen.check_own()
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            self._switch.follow(fn)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        kind, state = type(self), self.__getstate__()  # type: ignore[no-untyped-call]
        return new_of, (getattr(kind, "plain", kind), type(self.backbone)), state

    def _fitting(self, task: Task) -> Task:
        """The task with this backbone's tokenizer; raises BackboneMismatchError for one of another backbone."""
        whole = self._frozen.with_head if task.info.head_kind == KEEP else self.fingerprint
        check_fits(task, self._frozen.shapes(), self._frozen.base_state, whole)
        prepared, source = task.info.preprocessing, task.info.backbone.source
        bound = prepared and prepared.bound(self._preprocessing, task.name, source)
        return replace(task, info=replace(task.info, preprocessing=bound))


def _check_preprocessing(given: object) -> None:
    kinds = (Preprocessing, TextPreprocessing, type(None))
    check_is("preprocessing", given, kinds, "a Preprocessing, which a task file can hold")
