"""One frozen backbone, many tasks: what a user holds. How tasks are switched is in ``switched.py``."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from piggyback.errors import (
    InputError,
    PiggybackWarning,
    TaskNameError,
    TaskStateError,
    UnknownTaskError,
)
from piggyback.images.preprocessing import Preprocessing
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.rule import HEAD_LR, MaskRule, ScoreInit, Z, check_learnable, mask_lr, z_for
from piggyback.model.distance import MOST, feature_skill, head_inputs, one_each
from piggyback.model.heads import check_classes, class_names, head_kind, load_head, new_head
from piggyback.model.learning import Learning
from piggyback.model.routing import TaskInference, confidence
from piggyback.model.summary import Summary, masks_verdict, summarize
from piggyback.model.switched import SwitchedModel, Which
from piggyback.network.backbone import Backbone, BackboneInfo
from piggyback.network.frozen import FrozenBackbone
from piggyback.network.select import Selection
from piggyback.taskfile.file import load_file, save_file
from piggyback.taskfile.task import NormPolicy, Task, TaskInfo


class MultiTaskModel(SwitchedModel):
    """One frozen backbone that answers for many tasks, each a mask over its weights, a head and its normalisation.

    ``select`` names the weights that tasks mask (see ``select_weights``; default: every convolution and linear
    layer but the classifier), ``head`` the classifier's module (default: found). ``load_backbone`` knows head, source
    and preprocessing of what it returns. The module stays the caller's: its weights are frozen and fingerprinted,
    and ``release`` gives it back as it came.

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
        preprocessing: Preprocessing | None = None,
    ) -> None:
        if isinstance(backbone, Backbone):
            head, source = head or backbone.head, source or backbone.source
            preprocessing = preprocessing or backbone.preprocessing
            backbone = backbone.module
        super().__init__(FrozenBackbone(backbone, select, head))
        self.source, self.preprocessing = source, preprocessing

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
    def infer_task(self, *args: Any, **kwargs: Any) -> TaskInference:
        """Return, per sample, the task whose head is most sure of it: 1 - entropy / log(classes), highest first."""
        names = self.tasks
        if not names:
            raise UnknownTaskError("no tasks to choose from: add_task or load_task first")
        sure = torch.stack([confidence(self(*args, task=n, **kwargs)) for n in names], dim=1)
        return TaskInference([names[i] for i in sure.argmax(1).tolist()], sure, names)

    def bake(self, name: str | None) -> nn.Module:
        """Return a plain copy of the backbone with a task's weights, head and normalisation written into it."""
        with self._lock, self.task(name):
            return copy.deepcopy(self.backbone)

    def summary(self, name: str | None = None) -> Summary:
        """Return density, entropy and bytes of one task or of all."""
        names = self.tasks if name is None else (self._known(name),)
        return summarize({n: self._tasks[n] for n in names})

    def release(self) -> nn.Module:
        """Return the caller's module bit for bit as it came: weights, classifier, flags; this model is then empty."""
        with self._lock:
            if self._learning is not None:
                self.cancel_task()
            for name in self.tasks:
                self.delete_task(name)
            self.set_task(None)
            return self._frozen.give_back()

    # -- learning ------------------------------------------------------------------------------

    def start_task(
        self,
        name: str,
        classes: int | Sequence[str],
        *,
        rule: MaskRule | None = None,
        norm: NormPolicy = "frozen",
        head: nn.Module | None = None,
        masks: bool = True,
        kind: str = "classification",
        preprocessing: Preprocessing | None = None,
    ) -> None:
        """Make the live weights trainable for a new task with a fresh head; until ``finish_task`` it runs alone.

        ``norm="affine"`` lets the task have its own scale and shift in normalisation layers, ``norm="trained"``
        batch norm's statistics too. ``masks=False`` learns a head only. ``head`` replaces the default one, a new
        layer like the backbone's own classifier. Raises InputError for a ``rule`` with a form.
        """
        rule = rule or MaskRule()
        check_learnable(rule)
        with self._lock:
            self._not_learning("start another")
            self._new_name(name)
            self._new_head(head)
            if norm not in get_args(NormPolicy):
                raise InputError(
                    f"norm {norm!r}: expected one of {', '.join(get_args(NormPolicy))}"
                )
            original, names = self._frozen.head, class_names(classes)
            module = new_head(original, len(names)) if head is None else head
            digests = self._frozen.digests if masks else {}
            info = TaskInfo(
                kind=kind,
                classes=names,
                rule=rule,
                head_kind=head_kind(module, original),
                preprocessing=preprocessing or self.preprocessing,
                backbone=BackboneInfo(self.source, self.fingerprint, digests),
            )
            check_classes(info, module)
            self._write(None)
            self._learning = Learning(name, info, self._frozen, module, norm, masks)
            self._learning.begin()
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
            steps = cast(int, steps)
            z = Z if batches is None else z_for(self._skill(batches), steps)
            lr = mask_lr(steps, margin=start.margin(threshold), z=z)
            head_lr, norm_lr = head_lr or HEAD_LR, norm_lr or HEAD_LR
        return MaskOptimizer(
            learning.groups(lr, head_lr, norm_lr),
            inner,
            rule=learning.info.rule,
            base=self.base_of,
            **options,
        )

    @torch.no_grad()
    def _skill(self, batches: Iterable[Any]) -> float:
        """How well what reaches the head tells the classes of ``batches`` apart."""
        labels: list[Tensor] = []
        training, device = self.training, next(self.parameters()).device
        self.eval()
        try:
            with head_inputs(self.backbone.get_submodule(self.head_name)) as found:
                for batch in batches:
                    inputs, truth = _pair(batch)
                    self(inputs.to(device) if isinstance(inputs, Tensor) else inputs)
                    labels.append(truth)
                    if sum(map(len, labels)) >= MOST:
                        break
        finally:
            self.train(training)
        if not labels or not one_each(found, labels):
            raise InputError(
                f"batches: the head was called {len(found)} times for {len(labels)} batches: expected one or more, "
                "and once each with a row for every label; leave batches out"
            )
        if not all(bool(part.isfinite().all()) for part in found):
            raise InputError("batches: what reaches the head is not finite; look at the inputs")
        return feature_skill(torch.cat(found), torch.cat(labels))

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
            done = learning.capture({}) if task is None else task
            if task is None and learning.trained and (verdict := masks_verdict(done.density)):
                warnings.warn(f"task {done.name!r}: {verdict}", PiggybackWarning, stacklevel=2)
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
            self._in_learning().end()
            self._learning, self._in_place = None, Which.UNSURE
            self.train(self.training)
            self._settle()

    def _in_learning(self) -> Learning:
        if self._learning is None:
            raise TaskStateError("no task is in training: call start_task() first")
        return self._learning


def _pair(batch: Any) -> tuple[Any, Tensor]:
    """A batch as inputs and labels, an int64 tensor of classes; raises InputError for anything else."""
    found = type(batch).__name__
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, labels = batch
        found = f"labels of type {type(labels).__name__}"
        if isinstance(labels, Tensor):
            found = f"labels {labels.dtype} {tuple(labels.shape)}"
            whole = labels.ndim == 1 and labels.dtype == torch.int64
            if whole and not bool((labels < 0).any()):
                return inputs, labels
    raise InputError(
        f"batches: expected pairs of inputs and labels, int64 (n,) from 0, found {found}; "
        "leave batches out where labels are no classes"
    )
