"""The three methods that every table needs: masks, head only, and fine-tuning a full copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from piggyback.backbones.backbone import Backbone
from piggyback.backbones.fingerprint import fingerprint
from piggyback.backbones.frozen import replace_module
from piggyback.backbones.norm import norm_modules, norm_tensors
from piggyback.backbones.select import find_head
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.packing import PackedMask
from piggyback.model import MultiTaskModel
from piggyback.tasks.heads import new_head
from piggyback.tasks.task import Task
from piggyback.training.hashing import seed_of
from piggyback.training.methods import Product, Setup, register
from piggyback.training.recipe import derive_mask_lr

_HEAD_STREAM = 0x4EAD


class TaskLearner:
    """Learns a head, and masks and normalisation if asked, on a frozen backbone."""

    def __init__(self, backbone: Backbone, setup: Setup, *, masks: bool) -> None:
        recipe = setup.recipe
        with ExitStack() as undo:
            undo.callback(partial(_put_back, backbone.module, _place(backbone.module)))
            self.model = MultiTaskModel(
                backbone, select=recipe.select, preprocessing=setup.preprocessing
            )
            undo.callback(self.model.release)
            _move(self.model, setup)
            torch.manual_seed(seed_of(recipe.seed, _HEAD_STREAM))
            self.model.start_task(
                setup.name, setup.classes, rule=recipe.rule, norm=recipe.norm, masks=masks
            )
            self.optimizer: torch.optim.Optimizer = self._optimizer(setup)
            self._undo = undo.pop_all()
        self.network = self.model.backbone
        self.fingerprint = self.model.fingerprint
        self._name = setup.name

    def _optimizer(self, setup: Setup) -> MaskOptimizer:
        recipe = setup.recipe
        optimizer = self.model.optimizer(
            torch.optim.AdamW,
            lr=recipe.mask_lr or derive_mask_lr(setup.steps),
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
        """Set training or evaluation mode; frozen normalisation stays in evaluation mode."""
        self.model.train(training)

    def live(self) -> dict[str, Tensor]:
        """Return head and normalisation; the masked weights follow from the optimizer's scores."""
        head = self.network.get_submodule(self.model.head_name).state_dict()
        norms = norm_tensors(self.network, self.model.head_name, counters=True)
        return {
            **{f"head/{name}": tensor for name, tensor in head.items()},
            **{f"norm/{name}": tensor.detach() for name, tensor in norms.items()},
        }

    def capture(self) -> Task:
        """Return the task as it stands."""
        return self.model.capture()

    def flatten(self, product: Product) -> dict[str, Tensor]:
        """Return the task's tensors by part and name."""
        task = cast(Task, product)
        tensors = {f"keep/{name}": mask.keep for name, mask in task.masks.items()}
        for name, mask in task.masks.items():
            if mask.negative is not None:
                tensors[f"negative/{name}"] = mask.negative
        tensors |= {f"head/{name}": tensor for name, tensor in task.head.items()}
        return tensors | {f"norm/{name}": tensor for name, tensor in task.norm.items()}

    def unflatten(self, tensors: Mapping[str, Tensor]) -> Task:
        """Return the task that ``flatten`` took apart; the rest comes from this learner."""
        like = self.model.capture()
        masks = {
            name: PackedMask(mask.shape, tensors[f"keep/{name}"], tensors.get(f"negative/{name}"))
            for name, mask in like.masks.items()
        }
        head = {name: tensors[f"head/{name}"] for name in like.head}
        norm = {name: tensors[f"norm/{name}"] for name in like.norm}
        return replace(like, masks=masks, head=head, norm=norm)

    def deploy(self, product: Product) -> nn.Module:
        """Hold the task in the multi-task model as a user would, and return its network."""
        self.model.finish_task(cast(Task, product))
        self.model.eval()
        return self.network

    def close(self) -> None:
        """Give the backbone's module back bit for bit, on its device and in its layout."""
        self._undo.close()


class FinetuneLearner:
    """Trains every weight of a copy of the backbone."""

    def __init__(self, backbone: Backbone, setup: Setup) -> None:
        recipe = setup.recipe
        self._head = backbone.head or find_head(backbone.module)
        self.fingerprint = fingerprint(backbone.module, (), self._head)[0]
        self._frozen_norm = recipe.finetune_norm == "frozen"
        self.network = copy.deepcopy(backbone.module).requires_grad_(True)
        torch.manual_seed(seed_of(recipe.seed, _HEAD_STREAM))
        head = new_head(self.network.get_submodule(self._head), len(setup.classes))
        replace_module(self.network, self._head, head)
        for layer in self._norms() if self._frozen_norm else ():
            layer.requires_grad_(False)
        _move(self.network, setup)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            [{"params": trained, "peak_lr": recipe.finetune_lr}],
            lr=recipe.finetune_lr,
            weight_decay=recipe.weight_decay,
            fused=True,
        )

    def _norms(self) -> list[nn.Module]:
        return list(norm_modules(self.network, self._head).values())

    def mode(self, training: bool) -> None:
        """Set training or evaluation mode; frozen normalisation stays in evaluation mode."""
        self.network.train(training)
        for layer in self._norms() if self._frozen_norm else ():
            layer.eval()

    def live(self) -> dict[str, Tensor]:
        """Return the whole state dict."""
        return dict(self.network.state_dict())

    def capture(self) -> dict[str, Tensor]:
        """Return a copy of the state dict on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.live().items()}

    def flatten(self, product: Product) -> dict[str, Tensor]:
        """Return the state dict as it is."""
        return dict(cast("dict[str, Tensor]", product))

    def unflatten(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict as it is."""
        return dict(tensors)

    def deploy(self, product: Product) -> nn.Module:
        """Load the state dict and return the network."""
        self.network.load_state_dict(cast("dict[str, Tensor]", product))
        return self.network.eval()

    def close(self) -> None:
        """Nothing to give back: the backbone was copied."""


@register("masks")
def masks(backbone: Backbone, setup: Setup) -> TaskLearner:
    """Return a learner of masks and a head: the paper's method."""
    return TaskLearner(backbone, setup, masks=True)


@register("head")
def head(backbone: Backbone, setup: Setup) -> TaskLearner:
    """Return a learner of a head alone: the paper's classifier-only baseline."""
    return TaskLearner(backbone, setup, masks=False)


@register("finetune")
def finetune(backbone: Backbone, setup: Setup) -> FinetuneLearner:
    """Return a learner of all weights: the individual networks that masks are compared with."""
    return FinetuneLearner(backbone, setup)


def _move(module: nn.Module, setup: Setup) -> None:
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
