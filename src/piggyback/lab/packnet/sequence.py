"""PackNet: several tasks in one network, one after the other (Mallya & Lazebnik, CVPR 2018).

For each task in order:

    train   all weights that no task owns yet; those of earlier tasks compute too, and stand still
    prune   per layer, the smallest of what was just trained become 0 and free for later tasks
    train   what was kept on, at a tenth of the learning rate; from then on the task owns it

As the authors' scripts have it: the last task is not pruned, since nothing comes after it;
training on takes half the epochs (10 after 20) at a tenth of the rate (1e-4 after 1e-3); biases and
normalisation are trained with the first task and fixed for all others. In the paper the first task is
ImageNet; here the pretrained weights are what the first task starts from, and it may change them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from piggyback.errors import InputError
from piggyback.lab.packnet.network import MAX_TASKS, PackedNetwork, PackedTask, empty, save
from piggyback.lab.tables.rows import PACKNET
from piggyback.network.backbone import Backbone
from piggyback.taskfile.disk import write_file
from piggyback.texts.preprocessing import as_images
from piggyback.train.data.sets import ImageData
from piggyback.train.data.size import choose_size
from piggyback.train.device import processes
from piggyback.train.events import EpochRow, Listener
from piggyback.train.learners import FinetuneLearner
from piggyback.train.methods import Setup
from piggyback.train.recipe import Recipe
from piggyback.train.result import TrainResult
from piggyback.train.training import preprocessing_of, train

FILE = "packnet.safetensors"
"""The network's file in the folder of a sequence."""
PRUNED_RATE = 0.1
"""Learning rate after pruning, as a part of that before it."""


def train_packnet(
    backbone: Backbone,
    data: Mapping[str, ImageData],
    recipes: Mapping[str, Recipe],
    out: Path,
    *,
    listener: Listener | None = None,
) -> list[TrainResult]:
    """Return what PackNet makes of the tasks in ``data``, learned in its order: one result for each.

    Of a result, ``bytes`` are of the network's file with the tasks so far; ``seconds`` and ``history`` are of both
    trainings. Of a task's recipe, ``prune`` is the share that it gives back, ``prune_epochs`` how long it then trains
    on, ``finetune_lr``, ``finetune_optimizer`` and ``finetune_norm`` as for the method finetune, ``select`` the weights
    that are packed.

    ``out`` holds a folder for each training (``1-signs/train``, ``1-signs/pruned``, ...) and the network's file,
    rewritten after each task. A sequence that was stopped goes on where it was.

    Raises InputError for tasks and recipes that do not go together; else what ``train`` raises.
    """
    _check(recipes, list(data))
    network = empty(backbone, next(iter(recipes.values())).select)
    results: list[TrainResult] = []
    for number, (name, images) in enumerate(data.items(), 1):
        recipe = replace(recipes[name], method=PACKNET)
        if number > 1:  # earlier tasks need normalisation as it is
            recipe = replace(recipe, finetune_norm="frozen")
        side = choose_size(backbone, images.train, recipe.image_size).side
        seen = as_images(preprocessing_of(backbone, replace(recipe, image_size=side)))
        network = network.claimed(PackedTask(name, images.classes, seen, {}))
        stages = {"train": recipe}
        if number < len(data):
            epochs, rate = epochs_after_pruning(recipe, len(images.train)), recipe.finetune_lr
            stages["pruned"] = replace(recipe, epochs=epochs, finetune_lr=PRUNED_RATE * rate)
        parts: list[TrainResult] = []
        for stage, options in stages.items():
            if stage == "pruned":
                network = network.pruned(recipe.prune)
            result = train(
                replace(backbone, module=network.filled(network.weights)),
                images,
                name,
                options,
                out / f"{number}-{name}" / stage,
                resume=True,
                listener=listener,
                method=partial(PackNetLearner, network=network),
            )
            assert result.state is not None, "fine-tuning leaves all weights"
            network = network.trained(result.state)
            parts.append(result)
        results.append(_kept(parts, network, out / FILE))
    return results


def epochs_after_pruning(recipe: Recipe, images: int) -> int:
    """Return how long a task of ``images`` training images that is pruned trains on.

    >>> epochs_after_pruning(Recipe(epochs=5), 100)
    3
    """
    return recipe.prune_epochs or -(-recipe.epochs_for(images) // 2)


class PackNetLearner(FinetuneLearner):
    """Trains, of a copy of the backbone, what the last task of ``network`` owns, and its head.

    Biases, normalisation and the rest train with the first task only, which the recipe's ``finetune_norm`` can still
    forbid for normalisation.
    """

    def __init__(self, backbone: Backbone, setup: Setup, *, network: PackedNetwork) -> None:
        super().__init__(backbone, setup)
        number = len(network.tasks)
        if head := network.tasks[-1].head:
            self.network.get_submodule(self._head).load_state_dict(dict(head))
        for name, param in self.network.named_parameters():
            if not (number == 1 or name in network.weights or name.startswith(f"{self._head}.")):
                param.requires_grad_(False)  # without a gradient, optimizers pass it over
        mine = {name: owner == number for name, owner in network.owners.items()}
        hold(self.network, self.optimizer, mine)


def hold(
    module: nn.Module, optimizer: torch.optim.Optimizer, trainable: Mapping[str, Tensor]
) -> None:
    """Let ``optimizer`` move a parameter's values only where its ``trainable`` is true.

    The others get no gradient, so that neither clipping nor the optimizer's moments know them, and
    after each step they are put back from a copy: weight decay and momentum do not move them
    either, to the bit. Parameters that ``trainable`` does not name are left alone.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> sgd = torch.optim.SGD(net.parameters(), lr=1.0, weight_decay=0.1)
    >>> before = net.weight.detach().clone()
    >>> hold(net, sgd, {"weight": torch.tensor([[True, False]])})
    >>> net(torch.ones(1, 2)).sum().backward(); sgd.step()
    >>> (net.weight == before).tolist()
    [[False, True]]
    """
    held = []
    for name, mask in trainable.items():
        if bool(mask.all()):
            continue
        param = module.get_parameter(name)
        # As the parameter lies in memory, so that each step reads all three in one order.
        free = torch.empty_like(param, dtype=torch.bool, requires_grad=False).copy_(mask)
        held.append((param, free, param.detach().clone()))
        # Zero where a weight is held, whatever stood there, NaN included.
        param.register_hook(partial(torch.where, free, other=0))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def put_back(*_: Any) -> None:
        for param, free, fixed in held:
            param.copy_(torch.where(free, param, fixed))

    optimizer.register_step_post_hook(put_back)


def _kept(parts: list[TrainResult], network: PackedNetwork, path: Path) -> TrainResult:
    """A task's result: of the last of its trainings, with the time and epochs of all, and the network, now written."""
    data = save(network)
    if processes().is_main_process:
        write_file(path, data)
    processes().wait_for_everyone()
    history: list[EpochRow] = []
    seconds = 0.0
    for part in parts:
        done = len(history)
        history += [
            replace(row, epoch=row.epoch + done, seconds=row.seconds + seconds)
            for row in part.history
        ]
        seconds += part.seconds
    order = [task.name for task in network.tasks]
    return replace(
        parts[-1],
        seconds=seconds,
        history=tuple(history),
        bytes=len(data),
        state=None,
        path=path,
        provenance={**parts[-1].provenance, "packnet": {"order": order, "free": network.free}},
    )


def _check(recipes: Mapping[str, Recipe], names: list[str]) -> None:
    """Raise InputError for tasks and recipes that do not go together."""
    if len(names) > MAX_TASKS:
        raise InputError(f"{len(names)} tasks: expected at most {MAX_TASKS}")
    if len(selections := {recipe.select for recipe in recipes.values()}) > 1:
        raise InputError(f"select {selections}: expected one for all tasks of a network")
    for name in names[:-1]:
        if recipes[name].prune == 0:
            raise InputError(
                f"task {name!r}: prune 0: expected above 0, the share that later tasks learn in"
            )
