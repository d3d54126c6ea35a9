"""``train``: from a backbone, images and a recipe to a task, resumable at any point."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from piggyback.errors import CheckpointError, InputError
from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.network.fingerprint import fingerprint
from piggyback.taskfile.task import check_name
from piggyback.train import checkpoint
from piggyback.train.data.batches import source_view, steps_in_epoch
from piggyback.train.data.sets import ImageData
from piggyback.train.data.size import choose_size
from piggyback.train.events import Broadcast, Listener
from piggyback.train.logs import TensorBoard
from piggyback.train.loop import fit, one_step
from piggyback.train.methods import Method, Setup, method_of
from piggyback.train.processes import processes
from piggyback.train.recipe import Recipe
from piggyback.train.result import RESULT, TrainResult, finish, finished
from piggyback.train.run import CHECKPOINT, Run, restore
from piggyback.train.speed import Speed, candidates, choose
from piggyback.train.tune import tune


def train(
    backbone: Backbone,
    data: ImageData,
    name: str,
    recipe: Recipe | None = None,
    out: Path | str | None = None,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    method: Method | None = None,
) -> TrainResult:
    """Return what a run has learned: its best epoch by val accuracy, measured once on test.

    ``out`` is the run's folder: its checkpoint while it goes, then the task file (or the fine-tuned
    weights), logs and ``result.json``; None keeps nothing. ``resume`` goes on from the checkpoint
    there, or returns the result where the run has ended; otherwise the run starts anew. ``method``
    stands in for the one that the recipe names. The backbone's module comes back bit for bit.
    A recipe with ``tune`` has its settings chosen first, see ``tune.py``.

    Raises TrainingError when the loss is no longer a number; CheckpointError for a checkpoint that
    is damaged or of another run, or when ``out`` cannot be written; DataError for images that
    cannot be decoded.
    """
    recipe = recipe or Recipe()
    check_name(name)
    folder = None if out is None else Path(out)
    if recipe.tune:

        def attempt(part: ImageData, trial: Recipe, place: Path | None) -> TrainResult:
            return train(backbone, part, name, trial, place, resume=resume, method=method)

        recipe = tune(recipe, data, attempt, folder, listener)
    recipe = replace(recipe, epochs=recipe.epochs_for(len(data.train)))
    prepare = method_of(recipe.method) if method is None else method
    state = processes()
    _check_batch(recipe, data, state.num_processes)
    heard = Broadcast([] if listener is None else [listener])
    size = choose_size(backbone, data.train, recipe.image_size)
    recipe = replace(recipe, image_size=size.side)
    identity = {
        "name": name,
        "recipe": recipe.identity(),
        "data": data.describe(),
        "backbone": fingerprint(backbone.module, (), backbone.head)[0],
    }
    saved = None
    if resume and folder is not None:
        if (done := finished(folder, identity)) is not None:
            return done
        saved = _saved(folder / CHECKPOINT, identity)
    preprocessing = preprocessing_of(backbone, recipe)
    heard.on_stage("reading images")
    cached = data.in_memory(preprocessing, source_view(preprocessing, recipe.augment))
    epoch = steps_in_epoch(data.train, recipe.batch_size, state.num_processes)
    steps = recipe.epochs_for(len(data.train)) * epoch

    def start(on: Backbone, speed: Speed) -> Run:
        setup = Setup(
            name,
            data.classes,
            recipe,
            preprocessing,
            steps,
            state.device,
            speed.channels_last,
            data.kind,
        )
        learner = prepare(on, setup)
        return Run(
            name, recipe, cached, preprocessing, learner, speed, state.device, identity, heard
        )

    with _undisturbed(state.device):
        if saved is None:
            heard.on_stage("measuring speed")
            speed = _fastest(backbone, recipe, preprocessing, start)
        else:
            speed = Speed(**saved.progress["speed"])
        if folder is not None and recipe.tensorboard and state.is_main_process:
            heard.listeners.append(TensorBoard(folder / "tensorboard"))
        if folder is not None and saved is None and state.is_main_process:
            _clear(folder)
        run = start(backbone, speed)
        run.folder, run.size_reason = folder, size.reason
        try:
            if saved is not None:
                restore(run, saved)
            fit(run)
            heard.on_stage("measuring on test")
            return finish(run)
        finally:
            run.learner.close()
            heard.on_end()


def _fastest(
    backbone: Backbone,
    recipe: Recipe,
    preprocessing: Preprocessing,
    start: Callable[[Backbone, Speed], Run],
) -> Speed:
    """The fastest way to run the recipe's steps, tried on copies; the same on all processes."""

    def step(speed: Speed) -> Callable[[], None]:
        probe = start(replace(backbone, module=copy.deepcopy(backbone.module)), speed)
        batch = probe.batches(0)[0]
        probe.learner.mode(training=True)

        def run() -> None:
            one_step(probe, probe.learner.network, batch)

        return run

    key = {
        "method": recipe.method,
        "norm": [recipe.norm, recipe.finetune_norm],
        "source": backbone.source or type(backbone.module).__name__,
        "weights": sum(p.numel() for p in backbone.module.parameters()),
        "batch": [recipe.batch_size, recipe.accumulate, preprocessing.image_size],
        "processes": processes().num_processes,
    }
    chosen = [choose(candidates(recipe), key, step)]
    broadcast_object_list(chosen)
    return chosen[0]


def _check_batch(recipe: Recipe, data: ImageData, processes: int) -> None:
    if recipe.batch_size % processes:
        raise InputError(
            f"batch_size {recipe.batch_size}: expected a multiple of {processes}, "
            "the number of processes"
        )
    if data.kind == "segmentation" and recipe.augment.policy != "none":
        raise InputError(
            f"augmentation policy {recipe.augment.policy!r} with label maps: expected 'none', since "
            "its transforms would move the image under its map; use shift, flip and crop"
        )
    if len(data.train) < processes:
        raise InputError(
            f"{data.name}: {len(data.train)} training images for {processes} processes: "
            "expected one each or more"
        )


def preprocessing_of(backbone: Backbone, recipe: Recipe) -> Preprocessing:
    """Return how ``train`` prepares images: as the backbone wants them, in the recipe's size."""
    own = backbone.preprocessing or Preprocessing()
    size = recipe.image_size or own.image_size
    return replace(own, image_size=size, crop_pct=recipe.crop_pct)


def _clear(folder: Path) -> None:
    """Make the run's folder and forget another run in it; its task file stays until replaced."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in (CHECKPOINT, RESULT):
            (folder / old).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"run folder {str(folder)!r} cannot be written: {error.strerror}; choose another"
        ) from error


def _saved(place: Path, identity: dict[str, Any]) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from; None where the run was ended before its first one."""
    if not place.exists():
        return None
    saved = checkpoint.read(place)
    checkpoint.check_identity(place, saved.identity, identity)
    return saved


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Repeatable kernels inside; the caller's random state and settings as they were afterwards."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        torch.enable_grad(),
    ):
        yield
