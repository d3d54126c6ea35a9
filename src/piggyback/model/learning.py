"""A task being learned: which parameters train, and what it comes to."""

from __future__ import annotations

import math
import warnings
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedParameter

from piggyback.errors import (
    InputError,
    PiggybackWarning,
    TaskStateError,
    TrainingError,
    check_number,
)
from piggyback.kinds import KINDS, kind_of
from piggyback.masks.optimizer import MaskOptimizer, note_base, optimizers_of
from piggyback.model.heads import check_classes, head_tensors
from piggyback.model.processes import average_, calling_ddp, first_other, several
from piggyback.model.tensors import reaches, tensors_of
from piggyback.network.fingerprint import IGNORED
from piggyback.network.frozen import FrozenBackbone
from piggyback.network.norm import norm_modules
from piggyback.taskfile.header import check_writable
from piggyback.taskfile.rounding import BYTE, PACKED, round_half, round_rows
from piggyback.taskfile.task import KEEP, ROW_HEADS, NormPolicy, Task, TaskInfo

FIRST_RUNS = 5
"""Forward passes after a step that are looked at; later ones ever more rarely."""
EVERY = 50  # passes, of which one is followed by a look at normalisation's statistics
MANY = 16
"""Outputs from which on a head's weights are rounded to five bits."""
_PROBLEMS = {
    "single_label_classification": "classification",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}
"""What transformers calls the kinds, in a config that it fills in from the labels."""
_BUILT_FOR: weakref.WeakKeyDictionary[DistributedDataParallel, Counter[str]]
_BUILT_FOR = weakref.WeakKeyDictionary()
"""The task, by its ``runs``, that each was first used for: it reduces what was trainable when it was built."""


@dataclass(frozen=True)
class Learning:
    """The task that owns the live weights until it is finished or cancelled."""

    name: str
    info: TaskInfo
    backbone: FrozenBackbone
    head: nn.Module
    norm: NormPolicy
    masked: bool

    runs: Counter[str] = field(default_factory=Counter)
    """How many of the first runs were looked at."""

    def check(self) -> None:
        """Raise InputError for what cannot be trained, or written to a file."""
        if self.norm not in get_args(NormPolicy):
            raise InputError(
                f"norm {self.norm!r}: expected one of {', '.join(get_args(NormPolicy))}"
            )
        check_classes(self.info, self.head)
        check_writable(self.name, self.info)
        if self.info.kind == "classification" and len(self.info.classes) == 1:
            raise InputError(
                f"task {self.name!r} has one class, {self.info.classes[0]!r}, and would give it to everything: "
                "expected two or more, or kind='multilabel' or 'regression'"
            )
        for name, param in self.head.named_parameters():
            if isinstance(param, UninitializedParameter) or param.is_meta or param.is_complex():
                raise InputError(
                    f"head: its {name} has no values, or complex ones: expected real numbers, in a layer whose inputs "
                    "are known"
                )
        for name, kept in self.head.state_dict().items():
            if not isinstance(kept, Tensor):
                raise InputError(
                    f"head: {name!r} in its state dict is a {type(kept).__name__}: expected tensors alone, which a "
                    "task file can hold; leave get_extra_state() out"
                )
        for name, param in self.backbone.module.named_parameters():
            if param.is_inference():
                raise InputError(
                    f"weight {name!r} was made in inference mode, so nothing can be trained through it: expected a "
                    "network that was loaded outside of torch.inference_mode()"
                )
        if not (self._names() or self._own_head() or self._norms()):
            raise InputError(
                f"task {self.name!r} has nothing to train: expected masks, a head of its own, or normalisation"
            )
        if self.norm != "frozen" and not self._norms():
            raise InputError(
                f"norm {self.norm!r}: {type(self.backbone.module).__name__} has no normalisation layer outside its "
                "head: expected one or more; use norm='frozen'"
            )

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output; the first runs look whether the task is what gets trained.

        Raises TaskStateError where the new head is not reached, or is not what the output comes from, where masked
        weights were replaced, or where something else than a ``MaskOptimizer`` steps them.
        """
        module = self.backbone.module
        if torch.compiler.is_compiling():
            return module(*args, **kwargs)
        self.runs["passes"] += 1
        look = _is_looked_at(
            self.runs["passes"]
        )  # fused optimizers step in ways that torch does not count
        if self._stepped._version != self.runs["version"]:
            self.runs["version"] = self._stepped._version
            self.runs["live"] += 1
            look |= _is_looked_at(self.runs["live"])
        if look:
            self.backbone.check_own()
            self._check_live()
            self._check_untouched()
        ddp = calling_ddp() if torch.is_grad_enabled() else None
        if ddp is not None:
            self._check_together(ddp)
        elif torch.is_grad_enabled() and several() and not self.runs["alone"]:
            self.runs["alone"] += 1
            warnings.warn(
                f"task {self.name!r}: of several processes each learns a task of its own, since the model is not "
                "called through DistributedDataParallel: call what DDP(model) returned, unless that is meant",
                PiggybackWarning,
                stacklevel=3,
            )
        try:
            output = module(*args, **kwargs)
        except ValueError:
            sizes = {tensor.shape[:1] for tensor in tensors_of((args, kwargs))}
            if self.norm != "trained" or (1,) not in sizes or not module.training:
                raise
            output = self._run_one(args, kwargs)
        if self.norm == "trained" and module.training:
            self._check_statistics()
        if ddp is not None and self.norm == "trained":
            average_([t for t in self._norms().values() if not isinstance(t, nn.Parameter)], ddp)
        if (
            not self.runs["head"]
            and torch.is_grad_enabled()
            and any(param.requires_grad for param in self.head.parameters())
            and (tensors := list(tensors_of(output)))
        ):
            self.runs["head"] += 1
            self._check_output(reaches(tensors, self.head), output)
        if self.runs["live"] <= FIRST_RUNS:
            self._check_problem()
        return output

    def _run_one(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The output for one sample, of which batch norm learns no statistics; it takes those that it has."""
        if not self.runs["one"]:
            self.runs["one"] += 1
            warnings.warn(
                f"task {self.name!r}: batch norm cannot learn from a batch of one sample and keeps its statistics; "
                "leave an incomplete last batch out with drop_last=True",
                PiggybackWarning,
                stacklevel=4,
            )
        self.set_mode(False)
        try:
            return self.backbone.module(*args, **kwargs)
        finally:
            self.set_mode(True)

    def _check_statistics(self) -> None:
        """Raise TrainingError, now and then, where a batch has spoiled the statistics that the task brings."""
        self.runs["statistics"] += 1
        if self.runs["statistics"] % EVERY != 1:
            return
        for name, tensor in self._norms().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise TrainingError(
                    f"task {self.name!r}: {name} is not finite after one of the last {EVERY} batches, whose inputs "
                    "were not: look for NaN in the data and start the task anew"
                )

    def _check_output(self, reached: bool, output: Any) -> None:
        """Look whether the output is the new head's."""
        where = f"task {self.name!r}: the head {self.backbone.head_name!r}"
        if not reached:
            raise TaskStateError(
                f"{where} was exchanged, but the network does not call the new one: it uses another head, or holds the "
                "old one in a list or a function; name the right one with head=, or let it call the module by its name"
            )
        shapes = [tuple(tensor.shape) for tensor in tensors_of(output)]
        wanted = len(self.info.classes)
        # The first dimension is the batch's, of which as many may come as there are classes.
        labelled = self.info.kind in KINDS
        if labelled and shapes and not any(wanted in shape[1:] for shape in shapes):
            raise TaskStateError(
                f"{where} has {wanted} outputs, but the network's are {', '.join(map(str, shapes[:3]))}: it is not the "
                "last layer; name that one with head="
            )

    def _check_problem(self) -> None:
        """Raise TaskStateError where the network, one of transformers, takes the labels for those of another kind."""
        problem = getattr(getattr(self.backbone.module, "config", None), "problem_type", "") or ""
        kind = _PROBLEMS.get(problem, self.info.kind)
        if self.info.kind in _PROBLEMS.values() and kind != self.info.kind:
            raise TaskStateError(
                f"task {self.name!r} is a {self.info.kind}, but the network's config.problem_type is {problem!r}: "
                f"start it with kind={kind!r}, or set config.problem_type to None"
            )

    def _check_together(self, ddp: DistributedDataParallel) -> None:
        """Look whether all processes learn the same, in the first passes and then ever more rarely."""
        if _BUILT_FOR.setdefault(ddp, self.runs) is not self.runs:
            raise TaskStateError(
                f"task {self.name!r}: this DistributedDataParallel was built for an earlier task, so the new head's "
                "gradients would stay each process's own: build another one after start_task()"
            )
        self.runs["together"] += 1
        if not _is_looked_at(self.runs["together"]):
            return
        head = {f"{self.backbone.head_name}.{n}": t for n, t in self.head.named_parameters()}
        masked = {name: self.backbone.live.params[name] for name in self._names()}
        if other := first_other({**masked, **head, **self._norms()}, ddp):
            raise TaskStateError(
                f"task {self.name!r}: {other!r} is not the same in all processes: build the DistributedDataParallel "
                "after start_task(), and the optimizer with the same arguments everywhere"
            )

    def _check_live(self) -> None:
        """Look at the smallest masked weight: whether it is its base weight times a mask."""
        for name in self._names():
            if self.backbone.live.params[name] is self._stepped:
                if type(self._stepped.data) is Tensor:
                    self.backbone.live.capture([name], self.info.rule)
                break

    @cached_property
    def _stepped(self) -> nn.Parameter:
        """The parameter whose changes tell of steps: the smallest masked weight, or else one that is trained."""
        params: list[nn.Parameter] = self.groups(0.0)[0]["params"]
        return min(params, key=nn.Parameter.numel)

    def _check_untouched(self) -> None:
        """Raise TaskStateError where a weight was trained that the task cannot bring."""
        if found := self.backbone.touched():
            raise TaskStateError(
                f"task {self.name!r}: weight {found[0]!r} was trained, but no task brings it: expected only masked "
                "weights, the head and what norm= trains; leave it out of optimizers, or mask it with select="
            )

    def trained_names(self) -> frozenset[str]:
        """Return the state dict's names of what is trained besides the masks: head and normalisation."""
        head = [f"{self.backbone.head_name}.{key}" for key in head_tensors(self.info, self.head)]
        counters = (
            name
            for name in self.backbone.state()
            if self.norm == "trained" and name.endswith(IGNORED)
        )
        return frozenset([*head, *self._norms(), *counters])

    def begin(self, start: Task | None = None) -> None:
        """Put the head in place, and what ``start`` has, which was checked; make the task's parameters trainable."""
        if start is not None:
            self._start_at(start)
        self.backbone.put_head(self.head)
        self.backbone.invalidate_state()
        self.backbone.watch({*self._names(), *self._norms()})
        self.note_bases()
        for group in self.groups(0.0):
            for param in group["params"]:
                param.requires_grad_(True)

    def note_bases(self) -> None:
        """Let optimizers that are made without ``base=`` know the base weights of what is masked."""
        for name in self._names():
            note_base(self.backbone.live.params[name], self.backbone.live.base[name])

    def check_start(self, start: Task) -> None:
        """Raise InputError where this task cannot go on from ``start``."""
        what, own = f"task {start.name!r} cannot be gone on from", start.info
        for name, here, there in (
            ("kind", self.info.kind, own.kind),
            ("mask rule", self.info.rule, own.rule),
            ("head", self.info.head_kind, own.head_kind),
        ):
            if here != there:
                raise InputError(
                    f"{what}: its {name} is {there}: expected {here}; train with that one"
                )
        if start.norm.keys() != self._norms().keys():
            raise InputError(
                f"{what}: it brings {len(start.norm)} tensors of normalisation: expected {len(self._norms())} with "
                f"norm={self.norm!r}; train with the one that it had"
            )
        if start.masks and start.masks.keys() != set(self._names()):
            raise InputError(
                f"{what}: it masks {len(start.masks)} weights: expected {len(self._names())}, those that are trained "
                "here; train with the method and the select that it had"
            )
        if self.info.classes and not set(own.classes) & set(self.info.classes):
            raise InputError(
                f"{what}: it has none of these classes: expected some that are the same"
            )
        head = head_tensors(self.info, self.head)
        wanted = {name: tuple(tensor.shape[1:]) for name, tensor in head.items()}
        found = {name: tuple(tensor.shape[1:]) for name, tensor in start.head.items()}
        if wanted != found or (
            self.info.head_kind == "custom" and own.classes != self.info.classes
        ):
            raise InputError(
                f"{what}: its head has {found}: expected rows of {wanted} and, of your own, its classes"
            )

    @torch.no_grad()
    def _start_at(self, start: Task) -> None:
        """Put the masks, the normalisation and the head's rows of ``start`` in place."""
        state = self.backbone.base_state
        norm = {name: t.to(state[name].device, state[name].dtype) for name, t in start.norm.items()}
        self.backbone.write_(self.backbone.live.to_memory_order(start.masks), norm, self.head)
        if self.info.head_kind == KEEP:
            return
        old, new = start.info.classes, self.info.classes
        pairs = [(new.index(name), old.index(name)) for name in new if name in old]
        here, there = (torch.tensor(rows) for rows in zip(*pairs, strict=True))
        for name, tensor in self.head.state_dict().items():
            if self.info.head_kind == "custom":
                tensor.copy_(start.head[name])
            else:
                rows = start.head[name].to(tensor.device, tensor.dtype)[there.to(tensor.device)]
                tensor[here.to(tensor.device)] = rows

    def lost(self) -> list[str]:
        """Return the weights that training has changed and of which there is no second copy."""
        kept = {*self.backbone.live.base, *self.backbone.base_state}
        return [name for name in self.backbone.touched() if name not in kept]

    def end(self) -> None:
        """Freeze the task's parameters and drop their gradients; their values are the caller's to restore."""
        for optimizer in self._optimizers():
            optimizer.ended = self.name
        for name in self._names():
            note_base(self.backbone.live.params[name], None)
        for group in self.groups(0.0):
            for param in group["params"]:
                param.requires_grad_(False)
                param.grad = None

    def groups(
        self, lr: float, head_lr: float | None = None, norm_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Return the parameter groups of a ``MaskOptimizer``; learning rates not given are ``lr``."""
        rates: dict[str, Any] = {"lr": lr, "head_lr": head_lr, "norm_lr": norm_lr}
        for name, rate in rates.items():
            if rate is not None:  # a NaN would mask out every weight
                value = float(rate) if isinstance(rate, Tensor) else rate
                check_number(name, value, lambda v: 0 <= v < math.inf, "a finite number from 0")
        masked = {name: self.backbone.live.params[name] for name in self._names()}
        norms = {key: t for key, t in self._norms().items() if isinstance(t, nn.Parameter)}
        kinds: tuple[tuple[dict[str, nn.Parameter], dict[str, Any]], ...] = (
            (masked, {"masked": True, "lr": lr}),
            (self._own_head(), {"lr": lr if head_lr is None else head_lr}),
            (norms, {"lr": lr if norm_lr is None else norm_lr}),
        )
        return [{"params": [*p.values()], "names": [*p], **rest} for p, rest in kinds if p]

    @property
    def trained(self) -> bool:
        """Whether an optimizer has made scores of the masked weights; one that is gone, by a few steps."""
        return bool(self._optimizers()) or bool(self._names() and self.runs["live"] > 3)

    def capture(self, provenance: Mapping[str, Any]) -> Task:
        """Return the task as it stands, its masks read off the live weights.

        Warns where training changed a buffer that the task does not bring, so that it will not run as it did.
        """
        self.backbone.check_own()
        self._check_untouched()
        self._check_problem()
        for optimizer in self._optimizers():
            optimizer.check_scores()
        live, norms = self.backbone.live, self._norms()
        head = head_tensors(self.info, self.head)
        own = {**{f"head {key}": t for key, t in head.items()}, **norms}
        for name, tensor in own.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise TrainingError(
                    f"task {self.name!r}: {name} is not finite: expected numbers; lower the rate or clip gradients"
                )
        if changed := [name for name in self.backbone.changed_buffers() if name not in norms]:
            warnings.warn(
                f"task {self.name!r}: {len(changed)} buffers changed in training that the task does not bring, "
                f"the first {changed[0]!r}; they will be put back: keep frozen normalisation in eval mode "
                "(call train() on the MultiTaskModel, not on its backbone), or use norm='trained'",
                PiggybackWarning,
                stacklevel=3,
            )
        return Task(
            name=self.name,
            masks=live.to_c_order(live.capture(self._names(), self.info.rule)),
            head=_rounded_head(head, self.info),
            norm={name: round_half(tensor.detach().clone()) for name, tensor in norms.items()},
            info=replace(self.info, provenance=dict(provenance)),
        )

    def set_mode(self, training: bool) -> None:
        """Set normalisation layers to learn their statistics, where the task trains them."""
        for layer in norm_modules(self.backbone.module, self.backbone.head_name).values():
            layer.train(training and self.norm == "trained")

    def _optimizers(self) -> list[MaskOptimizer]:
        """Those that learn the task's masks."""
        return optimizers_of(self.backbone.live.params[name] for name in self._names())

    def _names(self) -> tuple[str, ...]:
        """The weights that the task masks."""
        return self.backbone.masked_names if self.masked else ()

    def _own_head(self) -> dict[str, nn.Parameter]:
        """The parameters of the task's own head by their names in the backbone; none of a head that is kept."""
        if self.info.head_kind == KEEP:
            return {}
        return {f"{self.backbone.head_name}.{key}": p for key, p in self.head.named_parameters()}

    def _norms(self) -> dict[str, Tensor]:
        """The normalisation that the task brings; a masked tensor is in the masks already."""
        if self.norm == "frozen":
            return {}
        return {
            name: tensor
            for name, tensor in self.backbone.norms().items()
            if name not in self._names()
            and (self.norm == "trained" or isinstance(tensor, nn.Parameter))
        }


def _is_looked_at(passes: int) -> bool:
    return passes <= FIRST_RUNS or not passes & (passes - 1)


def _rounded_head(tensors: Mapping[str, Tensor], info: TaskInfo) -> dict[str, Tensor]:
    """The values that a file keeps; a custom head's are its own affair.

    Five bits are for many outputs that are only compared with each other; few outputs cost few bytes anyway.
    """
    if info.head_kind not in ROW_HEADS:
        return dict(tensors)
    ranked = info.kind in KINDS and kind_of(info).ranked
    return {
        name: round_rows(tensor, PACKED if ranked and len(tensor) >= MANY else BYTE)
        for name, tensor in tensors.items()
    }
