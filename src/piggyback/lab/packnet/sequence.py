"""PackNet: several tasks in one network, one after the other (Mallya & Lazebnik, CVPR 2018).

For each task in order:

    train   all weights that no task owns yet; those of earlier tasks compute too, and stand still
    prune   per layer, the smallest of what was just trained become 0 and free for later tasks
    train   what was kept on, at a tenth of the learning rate; from then on the task owns it

As the authors' scripts have it: the last task is not pruned, since nothing comes after it;
training on takes half the epochs (10 after 20) at a tenth of the rate (1e-4 after 1e-3); biases and
normalisation are trained with the first task and fixed for all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from piggyback.errors import CheckpointError, InputError
from piggyback.lab.packnet import file as packnet_file
from piggyback.lab.packnet.learner import PackNetLearner
from piggyback.lab.packnet.network import (
    BACKBONE,
    MAX_TASKS,
    PackedNetwork,
    PackedTask,
    empty,
    with_backbone,
)
from piggyback.network.backbone import Backbone
from piggyback.taskfile.task import check_name
from piggyback.train.data.sets import ImageData
from piggyback.train.data.size import choose_size
from piggyback.train.events import Listener
from piggyback.train.processes import processes
from piggyback.train.recipe import Recipe
from piggyback.train.result import RESULT, TrainResult
from piggyback.train.run import CHECKPOINT
from piggyback.train.training import preprocessing_of, train

METHOD = "packnet"
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
    """One a task, in order. ``bytes`` are of the network's file with the tasks so far; ``seconds``
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
    prune_backbone: bool = False,
    prune_last: bool = False,
    resume: bool = False,
    listener: Listener | None = None,
) -> PackNetResult:
    """Return what PackNet makes of the tasks in ``data``, learned in its order.

    ``recipe`` is one for all, or one a task. Of it, ``prune`` is the share that a task gives back,
    ``prune_epochs`` how long it then trains on, ``finetune_lr``, ``finetune_optimizer`` and
    ``finetune_norm`` as for the method finetune, ``select`` the weights that are packed.

    In the paper the first task is ImageNet, pruned and trained on with its own images. Where these
    are at hand, make them the first of ``data``. Where they are not, the pretrained weights are by
    default only what the first task starts from: it may change them all, and nothing remembers
    what the backbone could do. With ``prune_backbone`` the backbone counts as the first task, called
    ``backbone``, with the head it came with: its smallest weights are freed, the rest, its biases
    and its normalisation are fixed at once, as there is nothing to train on with. That is dear:
    EfficientNet-Lite0 gives 68 % of 100 photographs of textures the class that it gave them before
    when 0.1 of its weights are freed so, 13 % at 0.25 and 4 % at 0.5; and every task starts there.

    ``prune_last``: prune the last task too, which leaves room for others.

    ``out`` holds a folder for each training (``1-signs/train``, ``1-signs/pruned``, ...) and the
    network's file, rewritten after each task. ``resume`` goes on where a sequence was stopped.

    Raises InputError for tasks and recipes that do not go together; else what ``train`` raises.

    >>> import torch; from torch import nn; from piggyback.train import from_tensors
    >>> images = torch.randint(0, 255, (20, 3, 8, 8), dtype=torch.uint8)
    >>> toy = from_tensors("toy", ["a", "b"], (images, torch.arange(20) % 2))
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> recipe = Recipe(epochs=1, batch_size=4, image_size=8, amp="no", channels_last="no")
    >>> done = train_packnet(Backbone(net, "", None, "3"), {"one": toy, "two": toy}, recipe)
    >>> [row.name for row in done.results], done.network.network_for("two")(torch.rand(1, 3, 8, 8)).shape
    (['one', 'two'], torch.Size([1, 2]))
    """
    recipes = _recipes(recipe, list(data))
    folder = None if out is None else Path(out)
    _check(recipes, prune_backbone=prune_backbone, prune_last=prune_last)
    if folder is not None and not resume and processes().is_main_process:
        _forget(folder, list(data))
    start = next(iter(recipes.values()))
    network = empty(backbone, start.select)
    if prune_backbone:
        network = with_backbone(network, start.prune, preprocessing_of(backbone, start))
    sequence = _Sequence(backbone, folder, resume, listener)
    results: list[TrainResult] = []
    for number, (name, images) in enumerate(data.items(), 1):
        network, result = sequence.learn(
            network,
            images,
            f"{number}-{name}",
            recipes[name],
            first=number == 1 and not prune_backbone,
            prune=number < len(data) or prune_last,
        )
        results.append(_row(result, network, folder))
    return PackNetResult(tuple(results), network, None if folder is None else folder / FILE)


def epochs_after_pruning(recipe: Recipe, images: int) -> int:
    """Return how long a task of ``images`` training images that is pruned trains on.

    >>> epochs_after_pruning(Recipe(epochs=5), 100)
    3
    """
    return recipe.prune_epochs or -(-recipe.epochs_for(images) // 2)


@dataclass(frozen=True)
class _Sequence:
    """What all trainings of a sequence have in common."""

    backbone: Backbone
    folder: Path | None
    resume: bool
    listener: Listener | None

    def learn(
        self,
        network: PackedNetwork,
        images: ImageData,
        place: str,
        recipe: Recipe,
        *,
        first: bool,
        prune: bool,
    ) -> tuple[PackedNetwork, TrainResult]:
        """Return the network with one more task, whose trainings lie in ``place``, NUMBER-NAME.

        ``first``: whether it trains biases and normalisation too, as nobody else needs them yet.
        """
        name = place.partition("-")[2]
        recipe = replace(recipe, method=METHOD)
        if not first:
            recipe = replace(recipe, finetune_norm="frozen")
        side = choose_size(self.backbone, images.train, recipe.image_size).side
        seen = preprocessing_of(self.backbone, replace(recipe, image_size=side))
        task = PackedTask(name, images.classes, seen, {})

        def stage(network: PackedNetwork, recipe: Recipe, owner: int, part: str) -> TrainResult:
            """Train the weights of ``owner``."""
            method = partial(
                PackNetLearner,
                trainable=network.owned(owner),
                shared=first,
                head=network.tasks[owner - 1].head if owner else None,
            )
            module = replace(self.backbone, module=network.whole())
            folder = None if self.folder is None else self.folder / place / part
            return train(
                module, images, name, recipe, folder,
                resume=self.resume, listener=self.listener, method=method,
            )  # fmt: skip

        whole = stage(network, recipe, 0, STAGES[0])
        network = network.learned(task, _state(whole), first=first)
        if not prune:
            return network, whole
        network = network.pruned(recipe.prune)
        again = replace(
            recipe,
            epochs=epochs_after_pruning(recipe, len(images.train)),
            finetune_lr=PRUNED_RATE * recipe.finetune_lr,
        )
        pruned = stage(network, again, len(network.tasks), STAGES[1])
        return network.trained(_state(pruned), first=first), _together(whole, pruned)


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


def _row(result: TrainResult, network: PackedNetwork, folder: Path | None) -> TrainResult:
    """A task's result with the size that the network has now, which is written if it is kept."""
    data = packnet_file.save(network)
    path = None
    if folder is not None:
        path = folder / FILE
        if processes().is_main_process:
            packnet_file.write(data, path)
        processes().wait_for_everyone()
    order = [task.name for task in network.tasks]
    provenance = {**result.provenance, "packnet": {"order": order, "free": network.free}}
    return replace(result, bytes=len(data), state=None, path=path, provenance=provenance)


def _recipes(recipe: Recipe | Mapping[str, Recipe], names: list[str]) -> dict[str, Recipe]:
    if isinstance(recipe, Recipe):
        return dict.fromkeys(names, recipe)
    for name in names:
        if name not in recipe:
            raise InputError(f"task {name!r} has no recipe: expected one for each of {names}")
    return {name: recipe[name] for name in names}


def _check(recipes: Mapping[str, Recipe], *, prune_backbone: bool, prune_last: bool) -> None:
    names = list(recipes)
    if not names:
        raise InputError("no tasks: expected one or more")
    if len(names) + prune_backbone > MAX_TASKS:
        raise InputError(f"{len(names)} tasks: expected at most {MAX_TASKS}, the backbone included")
    for name in names:
        check_name(name)
        if name == BACKBONE and prune_backbone:
            raise InputError(f"task {name!r}: the pruned backbone has that name; choose another")
    selections = {recipe.select for recipe in recipes.values()}
    if len(selections) > 1:
        raise InputError(f"select {selections}: expected one for all tasks of a network")
    pruned = names if prune_last else names[:-1]
    for name in [*names[: int(prune_backbone)], *pruned]:
        if recipes[name].prune == 0:
            raise InputError(
                f"task {name!r}: prune 0: expected above 0, the share that later tasks learn in"
            )


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
