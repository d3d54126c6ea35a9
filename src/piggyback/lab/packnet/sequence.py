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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from piggyback.errors import CheckpointError, InputError
from piggyback.lab.packnet.network import MAX_TASKS, PackedNetwork, PackedTask, empty, save
from piggyback.lab.tables.rows import PACKNET
from piggyback.network.backbone import Backbone
from piggyback.taskfile.task import check_name
from piggyback.texts.preprocessing import as_images
from piggyback.train.checkpoint import CHECKPOINT, write_file
from piggyback.train.data.sets import ImageData
from piggyback.train.data.size import choose_size
from piggyback.train.device import processes
from piggyback.train.events import Listener
from piggyback.train.learners import FinetuneLearner
from piggyback.train.methods import Setup
from piggyback.train.recipe import Recipe
from piggyback.train.result import RESULT, TrainResult
from piggyback.train.training import preprocessing_of, train

FILE = "packnet.safetensors"
"""The network's file in the folder of a sequence."""
STAGES = ("train", "pruned")
"""The folders of a task's two trainings."""
PRUNED_RATE = 0.1
"""Learning rate after pruning, as a part of that before it."""


@dataclass(frozen=True, eq=False)
class PackNetResult:
    """What ``train_packnet`` returns."""

    results: tuple[TrainResult, ...]
    """One per task, in order. ``bytes`` are of the network's file with the tasks so far; ``seconds``
    and ``history`` are of both trainings."""
    network: PackedNetwork
    file: Path | None
    """The one file of the network, if any was written."""


def train_packnet(
    backbone: Backbone,
    data: Mapping[str, ImageData],
    recipe: Recipe | Mapping[str, Recipe],
    out: Path | str | None = None,
    *,
    prune_last: bool = False,
    resume: bool = False,
    listener: Listener | None = None,
) -> PackNetResult:
    """Return what PackNet makes of the tasks in ``data``, learned in its order.

    ``recipe`` is one for all, or one per task. Of it, ``prune`` is the share that a task gives back,
    ``prune_epochs`` how long it then trains on, ``finetune_lr``, ``finetune_optimizer`` and
    ``finetune_norm`` as for the method finetune, ``select`` the weights that are packed.
    ``prune_last``: prune the last task too, which leaves room for others.

    ``out`` holds a folder for each training (``1-signs/train``, ``1-signs/pruned``, ...) and the
    network's file, rewritten after each task. ``resume`` goes on where a sequence was stopped.

    Raises InputError for tasks and recipes that do not go together; else what ``train`` raises.

    >>> from piggyback.train import from_tensors
    >>> images = torch.randint(0, 255, (20, 3, 8, 8), dtype=torch.uint8)
    >>> toy = from_tensors("toy", ["a", "b"], (images, torch.arange(20) % 2))
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> recipe = Recipe(epochs=1, batch_size=4, image_size=8, amp="no", channels_last="no")
    >>> done = train_packnet(Backbone(net, "", None, "3"), {"one": toy, "two": toy}, recipe)
    >>> [row.name for row in done.results], done.network.network_for("two")(torch.rand(1, 3, 8, 8)).shape
    (['one', 'two'], torch.Size([1, 2]))
    """
    recipes = _recipes(recipe, list(data), prune_last=prune_last)
    folder = None if out is None else Path(out)
    if folder is not None and not resume and processes().is_main_process:
        _forget(folder, list(data))
    network = empty(backbone, next(iter(recipes.values())).select)
    results: list[TrainResult] = []
    for number, (name, images) in enumerate(data.items(), 1):
        first = number == 1
        recipe = replace(recipes[name], method=PACKNET)
        if not first:  # earlier tasks need normalisation as it is
            recipe = replace(recipe, finetune_norm="frozen")

        def stage(
            network: PackedNetwork,
            recipe: Recipe,
            owner: int,
            place: str,
            images: ImageData = images,
            name: str = name,
            first: bool = first,
        ) -> TrainResult:
            """Train the weights of ``owner``, of nobody's for 0."""
            method = partial(
                PackNetLearner,
                trainable={n: numbers == owner for n, numbers in network.owners.items()},
                shared=first,
                head=network.tasks[owner - 1].head if owner else None,
            )
            return train(
                replace(backbone, module=network.filled(network.weights)),
                images,
                name,
                recipe,
                None if folder is None else folder / place,
                resume=resume,
                overwrite=True,
                listener=listener,
                method=method,
            )

        side = choose_size(backbone, images.train, recipe.image_size).side
        seen = as_images(preprocessing_of(backbone, replace(recipe, image_size=side)))
        result = stage(network, recipe, 0, f"{number}-{name}/{STAGES[0]}")
        task = PackedTask(name, images.classes, seen, {})
        network = network.learned(task, _state(result), first=first)
        if number < len(data) or prune_last:
            network = network.pruned(recipe.prune)
            again = replace(
                recipe,
                epochs=epochs_after_pruning(recipe, len(images.train)),
                finetune_lr=PRUNED_RATE * recipe.finetune_lr,
            )
            pruned = stage(network, again, number, f"{number}-{name}/{STAGES[1]}")
            network = network.trained(_state(pruned), first=first)
            result = _together(result, pruned)
        results.append(_kept(result, network, folder))
    return PackNetResult(tuple(results), network, None if folder is None else folder / FILE)


def epochs_after_pruning(recipe: Recipe, images: int) -> int:
    """Return how long a task of ``images`` training images that is pruned trains on.

    >>> epochs_after_pruning(Recipe(epochs=5), 100)
    3
    """
    return recipe.prune_epochs or -(-recipe.epochs_for(images) // 2)


class PackNetLearner(FinetuneLearner):
    """Trains a head and, of a copy of the backbone, only what it is told to.

    ``trainable`` says by name which values of the packed weights may move. ``shared``: whether
    biases, normalisation and the rest may too, which the recipe's ``finetune_norm`` can still
    forbid for normalisation. ``head`` is the classifier to start from; by default a new one.
    """

    def __init__(
        self,
        backbone: Backbone,
        setup: Setup,
        *,
        trainable: Mapping[str, Tensor],
        shared: bool,
        head: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(backbone, setup)
        if head is not None:
            self.network.get_submodule(self._head).load_state_dict(dict(head))
        for name, param in self.network.named_parameters():
            if not (shared or name in trainable or name.startswith(f"{self._head}.")):
                param.requires_grad_(False)  # without a gradient, optimizers pass it over
        hold(self.network, self.optimizer, trainable)


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


def _state(result: TrainResult) -> Mapping[str, Tensor]:
    if result.state is None:
        raise CheckpointError(f"{result.path}: expected weights; delete it to train anew")
    return result.state


def _together(whole: TrainResult, pruned: TrainResult) -> TrainResult:
    """The result after pruning, with the time and the epochs of both trainings."""
    history = [
        replace(row, epoch=row.epoch + len(whole.history), seconds=row.seconds + whole.seconds)
        for row in pruned.history
    ]
    seconds = whole.seconds + pruned.seconds
    return replace(pruned, seconds=seconds, history=(*whole.history, *history))


def _kept(result: TrainResult, network: PackedNetwork, folder: Path | None) -> TrainResult:
    """A task's result with the size that the network has now, which is written if it is kept."""
    data = save(network)
    path = None if folder is None else folder / FILE
    if path is not None and processes().is_main_process:
        write_file(path, data)
    processes().wait_for_everyone()
    order = [task.name for task in network.tasks]
    provenance = {**result.provenance, "packnet": {"order": order, "free": network.free}}
    return replace(result, bytes=len(data), state=None, path=path, provenance=provenance)


def _recipes(
    recipe: Recipe | Mapping[str, Recipe], names: list[str], *, prune_last: bool
) -> dict[str, Recipe]:
    """A recipe for each task; raises InputError for tasks and recipes that do not go together."""
    if not 0 < len(names) <= MAX_TASKS:
        raise InputError(f"{len(names)} tasks: expected 1 to {MAX_TASKS}")
    recipes: dict[str, Recipe] = {}
    for name in names:
        check_name(name)
        if not isinstance(recipe, Recipe) and name not in recipe:
            raise InputError(f"task {name!r} has no recipe: expected one for each of {names}")
        recipes[name] = recipe if isinstance(recipe, Recipe) else recipe[name]
    if len(selections := {recipe.select for recipe in recipes.values()}) > 1:
        raise InputError(f"select {selections}: expected one for all tasks of a network")
    for name in names if prune_last else names[:-1]:
        if recipes[name].prune == 0:
            raise InputError(
                f"task {name!r}: prune 0: expected above 0, the share that later tasks learn in"
            )
    return recipes


def _forget(folder: Path, names: list[str]) -> None:
    """Forget another sequence in the folder, so that resuming this one cannot meet it."""
    try:
        for number, name in enumerate(names, 1):
            for stage in STAGES:
                for old in (CHECKPOINT, RESULT):
                    (folder / f"{number}-{name}" / stage / old).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"run folder {str(folder)!r} cannot be written: {error.strerror}; choose another"
        ) from error
