"""The three methods that every table needs: masks, head only, and fine-tuning a full copy."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from piggyback.masks.bits import PackedMask
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.model.heads import new_head
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.backbone import Backbone
from piggyback.network.frozen import replace_module
from piggyback.network.head import find_head
from piggyback.network.norm import norm_modules, norm_tensors
from piggyback.taskfile.file import save
from piggyback.taskfile.header import header_of
from piggyback.taskfile.task import Task
from piggyback.train.checkpoint import load_live
from piggyback.train.hashing import seed_of
from piggyback.train.methods import Learned, Learner, ResultFile, Setup
from piggyback.train.recipe import Recipe

HEAD_STREAM = 0x4EAD
"""Where the random numbers of a new head come from: a seed gives the same head to every method."""


class TaskLearner(Learner):
    """Learns a head, and masks and normalisation if asked, on a frozen backbone."""

    def __init__(self, backbone: Backbone, setup: Setup, *, masks: bool) -> None:
        recipe = setup.recipe
        with ExitStack() as undo:
            undo.callback(partial(_put_back, backbone.module, _place(backbone.module)))
            self.model = MultiTaskModel(
                backbone, select=recipe.select, preprocessing=setup.preprocessing
            )
            undo.callback(self.model.release)
            move(self.model, setup)
            torch.manual_seed(seed_of(recipe.seed, HEAD_STREAM))
            self.model.start_task(
                setup.name,
                setup.classes,
                rule=recipe.rule,
                norm=recipe.norm,
                masks=masks,
                kind=setup.kind,
                start=setup.start,
                units=setup.units,
                scaling=setup.scaling,
            )
            self.optimizer: torch.optim.Optimizer = self._optimizer(setup)
            self._undo = undo.pop_all()
        self.network = self.model.backbone
        self.head: nn.Module | None = self.network.get_submodule(self.model.head_name)

    def _optimizer(self, setup: Setup) -> MaskOptimizer:
        recipe = setup.recipe
        optimizer = self.model.optimizer(
            torch.optim.AdamW,
            # Not knowing the task: the guard, which looks at its features, brings the rate to that of the task.
            lr=recipe.mask_lr
            or recipe.mask_rate * recipe.derived_mask_lr(setup.steps, None, self.model.transformer),
            head_lr=recipe.head_lr,
            norm_lr=recipe.norm_lr,
            init=recipe.init,
            grad_scale=recipe.grad_scale,
            regularizers=recipe.regularizers,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        optimizer.initialize()
        return optimizer

    def mode(self, training: bool) -> None:
        self.model.train(training)

    def live(self) -> dict[str, Tensor]:
        """Return head and normalisation; the optimizer's state has scores, and the masked weights follow from these."""
        head = self.network.get_submodule(self.model.head_name).state_dict()
        norms = norm_tensors(self.network, self.model.head_name, counters=True)
        return {
            **{f"head/{name}": tensor for name, tensor in head.items()},
            **{f"norm/{name}": tensor.detach() for name, tensor in norms.items()},
        }

    def capture(self) -> LearnedTask:
        return LearnedTask(self.model.capture(), self.model)

    def unflatten(self, tensors: Mapping[str, Tensor]) -> LearnedTask:
        like = self.model.capture()  # the rest of the task comes from this learner
        masks = {
            name: PackedMask(mask.shape, tensors[f"keep/{name}"], tensors.get(f"negative/{name}"))
            for name, mask in like.masks.items()
        }
        head = {name: tensors[f"head/{name}"] for name in like.head}
        norm = {name: tensors[f"norm/{name}"] for name in like.norm}
        return LearnedTask(replace(like, masks=masks, head=head, norm=norm), self.model)

    def close(self) -> None:
        """Give the backbone's module back bit for bit, on its device and in its layout."""
        self._undo.close()


@dataclass(frozen=True, eq=False)
class LearnedTask(Learned):
    """A task, and the model that learned it."""

    task: Task
    model: MultiTaskModel

    @property
    def density(self) -> float | None:
        return self.task.density if self.task.masks else None

    def flatten(self) -> dict[str, Tensor]:
        tensors = {f"keep/{name}": mask.keep for name, mask in self.task.masks.items()}
        for name, mask in self.task.masks.items():
            if mask.negative is not None:
                tensors[f"negative/{name}"] = mask.negative
        tensors |= {f"head/{name}": tensor for name, tensor in self.task.head.items()}
        return tensors | {f"norm/{name}": tensor for name, tensor in self.task.norm.items()}

    def deploy(self) -> nn.Module:
        """Hold the task in the multi-task model as a user would, and return its network."""
        self.model.finish_task(self.task)
        self.model.eval()
        return self.model.backbone

    def to_file(self, provenance: Mapping[str, Any], **found: Any) -> ResultFile:
        info = replace(self.task.info, provenance=provenance, **found)
        task = replace(self.task, info=info).to("cpu")
        data = save(task)
        bits = header_of(data).bits_per_weight if task.weights else None
        return ResultFile(data, "", task=task, bits_per_weight=bits)


class CopyLearner(Learner):
    """Trains something of a copy of the backbone; what it leaves are all tensors that ``live`` names."""

    head: nn.Module | None = None
    suffix = ".finetuned"
    """What stands in the result's file name before ``.safetensors``."""
    notes: Mapping[str, Any] = {}
    """What the result's file says besides its tensors: plain JSON by name."""

    def capture(self) -> LearnedTensors:
        """Return a copy of the tensors on the CPU."""
        copied = {name: tensor.detach().cpu().clone() for name, tensor in self.live().items()}
        return LearnedTensors(copied, self)

    def unflatten(self, tensors: Mapping[str, Tensor]) -> LearnedTensors:
        return LearnedTensors(dict(tensors), self)

    def close(self) -> None:
        """Nothing to give back: the backbone was copied."""


@dataclass(frozen=True, eq=False)
class LearnedTensors(Learned):
    """The tensors that a copy has learned."""

    tensors: dict[str, Tensor]
    learner: CopyLearner
    density = None

    def flatten(self) -> dict[str, Tensor]:
        return self.tensors

    def deploy(self) -> nn.Module:
        """Write the tensors into the network and return it."""
        load_live(self.learner.live(), self.tensors)
        return self.learner.network.eval()

    def to_file(self, provenance: Mapping[str, Any], **found: Any) -> ResultFile:
        texts = {**self.learner.notes, "provenance": provenance, **found}
        metadata = {name: json.dumps(value) for name, value in texts.items()}
        plain = {name: tensor.contiguous().clone() for name, tensor in self.tensors.items()}
        data = safetensors.torch.save(plain, metadata)
        return ResultFile(data, self.learner.suffix, state=self.tensors)


class FinetuneLearner(CopyLearner):
    """Trains every weight of a copy of the backbone."""

    def __init__(self, backbone: Backbone, setup: Setup) -> None:
        recipe = setup.recipe
        self._head = backbone.head or find_head(backbone.module)
        self._frozen_norm = recipe.finetune_norm == "frozen"
        self.network = copy.deepcopy(backbone.module).requires_grad_(True)
        torch.manual_seed(seed_of(recipe.seed, HEAD_STREAM))
        head = new_head(self.network.get_submodule(self._head), len(setup.classes), setup.kind)
        replace_module(self.network, self._head, head)
        for layer in self._norms() if self._frozen_norm else ():
            layer.requires_grad_(False)
        move(self.network, setup)
        self.optimizer = self._optimizer(recipe)

    def _optimizer(self, recipe: Recipe) -> torch.optim.Optimizer:
        trained = [p for p in self.network.parameters() if p.requires_grad]
        lr, decay = recipe.finetune_lr, recipe.weight_decay
        groups = [{"params": trained, "peak_lr": lr}]
        if recipe.finetune_optimizer == "sgd":  # the paper's, one rate for weights and head
            return torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=decay, fused=True)
        return torch.optim.AdamW(groups, lr, weight_decay=decay, fused=True)

    def _norms(self) -> list[nn.Module]:
        return list(norm_modules(self.network, self._head).values())

    def mode(self, training: bool) -> None:
        self.network.train(training)
        for layer in self._norms() if self._frozen_norm else ():
            layer.eval()

    def live(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())


def masks(backbone: Backbone, setup: Setup) -> TaskLearner:
    """Return a learner of masks and a head: the paper's method."""
    return TaskLearner(backbone, setup, masks=True)


def head(backbone: Backbone, setup: Setup) -> TaskLearner:
    """Return a learner of a head alone: the paper's classifier-only baseline."""
    return TaskLearner(backbone, setup, masks=False)


def move(module: nn.Module, setup: Setup) -> None:
    """Put a module on the run's device and into its memory format."""
    module.to(setup.device)
    if setup.channels_last:
        module.to(memory_format=torch.channels_last)


def _place(module: nn.Module) -> tuple[torch.device | None, bool]:
    """The device of a module, and whether all its parameters lie in C order."""
    first = next(module.parameters(), None)
    plain = all(p.is_contiguous() for p in module.parameters())
    return (None if first is None else first.device), plain


def _put_back(module: nn.Module, place: tuple[torch.device | None, bool]) -> None:
    device, plain = place
    if device is not None:
        module.to(device)
    if plain:
        module.to(memory_format=torch.contiguous_format)
