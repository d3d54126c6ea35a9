"""``train``: from a backbone, images and a recipe to a task, resumable at any point."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from piggyback.errors import CheckpointError, InputError, check_is, near_misses
from piggyback.images.preprocessing import Preprocessing
from piggyback.kinds import kind_of
from piggyback.kinds.base import Loss
from piggyback.network.backbone import Backbone
from piggyback.network.fingerprint import fingerprint
from piggyback.network.frozen import refuse_held
from piggyback.taskfile.disk import lock_folder
from piggyback.taskfile.file import save
from piggyback.taskfile.header import check_writable
from piggyback.taskfile.task import Task, check_name
from piggyback.texts.preprocessing import Prepares, TextPreprocessing
from piggyback.train import checkpoint
from piggyback.train.checkpoint import CHECKPOINT
from piggyback.train.data.batches import choose_border, steps_in_epoch, train_view
from piggyback.train.data.dataset import as_data
from piggyback.train.data.labelled import LabelledSet
from piggyback.train.data.sets import ImageData, seen_in
from piggyback.train.data.size import choose_length, choose_size, size_of
from piggyback.train.data.text import TextSet
from piggyback.train.device import Speed, processes, speed_of
from piggyback.train.events import Listener
from piggyback.train.logs import check_tracker
from piggyback.train.loop import Run, fit, restore
from piggyback.train.methods import Method, Setup, method_of
from piggyback.train.recipe import Augment, Recipe
from piggyback.train.result import RESULT, TrainResult, finish, finished
from piggyback.train.tune import tune

LossFunction: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""From outputs, float32 (n, classes), and targets to their mean loss, or to one for each sample, (n,)."""


def train(
    backbone: Backbone,
    data: ImageData | Dataset[Any] | Mapping[str, Dataset[Any]],
    name: str,
    recipe: Recipe | None = None,
    out: Path | str | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
    method: Method | None = None,
    start: Task | None = None,
    loss: LossFunction | None = None,
) -> TrainResult:
    """Return what a run has learned: its best epoch by val accuracy, measured once on test.

    ``data`` may also be a map-style data set of pairs (image, label), or several by split ("train", "val", "test"), as
    ``from_datasets`` takes them. ``out`` is the run's folder: its checkpoint while it goes, then the task file (or the
    fine-tuned weights), logs and ``result.json``; None keeps nothing. ``resume`` goes on from the checkpoint there, or
    returns the result where the run has ended; otherwise the run starts anew, and replaces a finished run of other
    settings only if told to ``overwrite`` it. ``method`` stands in for the one that the recipe names. The backbone's
    module comes back bit for bit. A recipe with ``tune`` has its settings chosen first, see ``tune.py``. ``start`` is a
    task to go on from, with more images, steps or classes: see ``MultiTaskModel.start_task``; inputs are prepared as
    it has them, unless the recipe says otherwise. ``loss`` is a function of
    your own in place of the kind's loss, of outputs (n, classes) and targets as the kind has them; val is still
    measured by the kind's. It must be the same when a run is resumed, which goes by its name.

    Raises TrainingError when the loss is no longer a number; CheckpointError for a checkpoint that is damaged or of
    another run, for a finished run that would be lost, or when ``out`` cannot be written; DataError for images that
    cannot be decoded; MissingExtraError for a tracker that is not installed.
    """
    recipe, listener = Recipe() if recipe is None else recipe, listener or Listener()
    check_is("backbone", backbone, Backbone, "what load_backbone returns, or a Backbone")
    check_is("recipe", recipe, Recipe, "a Recipe")
    check_name(name)
    refuse_held(backbone.module)
    data = as_data(data, name)
    if loss is not None:
        recipe = replace(recipe, loss=_called(loss, recipe))
    folder = None if out is None else Path(out)
    check_tracker(recipe, folder)
    if recipe.tune:
        if folder is not None and not resume and not overwrite and (folder / RESULT).exists():
            raise CheckpointError(
                f"run folder {str(folder)!r} holds a finished run, and this one would choose its settings anew: choose "
                "another folder (out=), replace it (overwrite=True), or go on from it (resume=True)"
            )
        options: dict[str, Any] = {"method": method, "start": start, "loss": loss}
        attempt = partial(train, backbone, name=name, resume=resume, overwrite=True, **options)
        mine = folder if processes().is_main_process else None
        with nullcontext() if mine is None else lock_folder(mine):
            recipe = tune(recipe, data, attempt, folder, listener, start)
    prepare = method or method_of(recipe.method)
    state = processes()
    _check_batch(recipe, data, state.num_processes)
    how = _loss(recipe, data, state.device, loss)  # before the work
    if start is not None:
        recipe = _prepared_as(start, recipe, backbone)
    # What follows from the data is written down, so that the recipe says what was done.
    listener.on_stage(f"reading {data.train.what}")
    epochs, own = recipe.epochs_for(len(data.train)), backbone.preprocessing
    if isinstance(data.train, TextSet) and isinstance(own, TextPreprocessing):
        _check_texts(recipe)
        size = choose_length(own, data.train, recipe.max_length)
        recipe = replace(recipe, epochs=epochs, max_length=size.side)
    else:
        size = choose_size(backbone, data.train, recipe.image_size)
        recipe = replace(recipe, epochs=epochs, image_size=size.side)
    augment = choose_border(recipe.augment, data.train, preprocessing_of(backbone, recipe))
    recipe = replace(recipe, augment=augment)
    identity = {
        "name": name,
        "recipe": recipe.identity(),
        "data": data.describe(),
        "backbone": fingerprint(backbone.module, (), backbone.head)[0],
    }
    info = data.info()
    if start is not None:
        identity["from"] = _start(start, recipe, data, listener)
        info = info.going_on(start.info)
        before, now = start.info.preprocessing, preprocessing_of(backbone, recipe)
        if before is not None and size_of(before) != size_of(now):
            listener.on_notice(
                f"going on from {start.name!r}, which sees {size_of(before)}, with {size_of(now)}"
            )
    written = {"data": identity["data"], "recipe": recipe.to_json()}
    info = replace(info, provenance=written)
    check_writable(name, info)
    saved = None
    if resume and folder is not None:
        if (done := finished(folder, identity)) is not None:
            return done
        if (place := folder / CHECKPOINT).exists():
            saved = checkpoint.read(place)
            checkpoint.check_identity(place, saved.identity, identity)
    elif folder is not None and not overwrite:
        _keep_finished(folder, identity)
        if (folder / CHECKPOINT).exists():
            listener.on_notice(
                "starting anew, although a run was interrupted here; resume=True goes on from it"
            )
    preprocessing = preprocessing_of(backbone, recipe)
    cached = data.in_memory(preprocessing, train_view(preprocessing, recipe.augment))
    speed = speed_of(recipe, backbone.module, state.device)
    if saved is not None:  # goes on as it began, perhaps on another machine
        speed = Speed(**saved.progress["speed"])
    setup = Setup(
        name,
        data.classes,
        recipe,
        preprocessing,
        epochs * steps_in_epoch(data.train, recipe.batch_size, state.num_processes),
        state.device,
        speed.channels_last,
        info.kind,
        units=info.units,
        scaling=info.scaling,
        start=start,
    )
    mine = folder if state.is_main_process else None
    with _undisturbed(state.device), nullcontext() if mine is None else lock_folder(mine):
        if mine is not None and saved is None:
            _clear(mine)
        run = Run(
            name,
            recipe,
            cached,
            preprocessing,
            size.reason,
            prepare(backbone, setup),
            speed,
            state.device,
            identity,
            listener,
            folder,
            kind=kind_of(info),
            how=how,
        )
        try:
            if saved is not None:
                restore(run, saved)
            fit(run)
            listener.on_stage("measuring on test")
            return finish(run)
        finally:
            run.learner.close()
            listener.on_end()


def _prepared_as(start: Task, recipe: Recipe, backbone: Backbone) -> Recipe:
    """The recipe, which sees inputs as the task does that a run goes on from, where nothing else is asked for."""
    seen, own = start.info.preprocessing, backbone.preprocessing
    texts = [isinstance(each, TextPreprocessing) for each in (seen, own) if each is not None]
    if len(set(texts)) == 2:
        what = "texts" if texts[0] else "images"
        raise InputError(
            f"task {start.name!r} cannot be gone on from: it is of {what}, and the backbone is not"
        )
    if isinstance(seen, TextPreprocessing):
        return replace(recipe, max_length=recipe.max_length or seen.max_length)
    if seen is None:
        return recipe
    crop = seen.crop_pct if recipe.crop_pct == Recipe.crop_pct else recipe.crop_pct
    side = None if backbone.size_given else seen.image_size
    return replace(recipe, crop_pct=crop, image_size=recipe.image_size or side)


def _start(start: Task, recipe: Recipe, data: ImageData, listener: Listener) -> dict[str, Any]:
    """Return what identifies the task that a run goes on from; say what becomes of its classes."""
    if recipe.method not in ("masks", "head"):
        raise InputError(
            f"method {recipe.method!r} cannot go on from task {start.name!r}: expected masks or head"
        )
    dropped = [name for name in start.info.classes if name not in data.classes]
    added = [name for name in data.classes if name not in start.info.classes]
    for what, names in (("dropped, since the images have none", dropped), ("new", added)):
        if names:
            some = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
            listener.on_notice(
                f"going on from {start.name!r}: {len(names)} classes are {what}: {some}"
            )
    sketch = start.info.provenance.get("data", {}).get("learned_from", "")
    if isinstance(data.test, LabelledSet) and sketch and (seen := seen_in(data.test, sketch)):
        listener.on_notice(
            f"going on from {start.name!r}: about {seen} of the {len(data.test)} test {data.test.what} were used to "
            "train it; its accuracy on test will say too much"
        )
    return {
        "name": start.name,
        "sha256": hashlib.sha256(save(start)).hexdigest(),
        "learned_from": sketch,
    }


def _called(loss: LossFunction, recipe: Recipe) -> str:
    """What a loss of the user's own is called in recipes and files."""
    if not callable(loss):
        raise InputError(f"loss {loss!r:.80}: expected a function of outputs and targets")
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    name = f"{named.__module__}:{named.__qualname__}"
    for field, found in (("loss", recipe.loss), ("class_weights", recipe.class_weights)):
        if found not in (None, name):
            raise InputError(f"{field} {found!r} beside a loss of your own, {name}: leave it out")
    return name


def _loss(
    recipe: Recipe, data: ImageData, device: torch.device, own: LossFunction | None = None
) -> Loss:
    """How the loss is computed; InputError for one that the data's kind does not have."""
    kind, name, weights = kind_of(data.info()), recipe.loss or "auto", None
    for field in ("sampling", "mixup", "cutmix", "abstain_at"):
        if (asked := getattr(recipe, field)) is not None and not kind.one_each:
            raise InputError(
                f"{field} {asked!r} for a {kind.name} task: expected a classification; leave it out"
            )
    if recipe.augment.border == "plain" and kind.name == "segmentation":
        raise InputError(
            "augment.border 'plain' with label maps, of whose gaps nobody knows the class: leave it out"
        )
    if own is not None:
        return Loss(name, function=own)
    if name not in kind.losses_known:
        known = [each for each in kind.losses_known if each != "auto"]
        raise InputError(
            f"loss {name!r} for a {kind.name} task: expected {' or '.join(known) or 'none'}; leave it "
            "out for the usual one"
        )
    labels = data.train.labels if isinstance(data.train, LabelledSet) else None
    if recipe.class_weights == "balanced":
        weights = None if labels is None else kind.balanced(labels)
        if weights is None:
            raise InputError(
                f"class_weights 'balanced' for a {kind.name} task: expected classes or labels of whole images"
            )
    elif recipe.class_weights is not None:
        weights = _given(recipe.class_weights, data.classes)
        weights = weights if labels is None else kind.scaled(weights, labels)
    return Loss(name, recipe.label_smoothing, None if weights is None else weights.to(device))


def _given(text: str, classes: Sequence[str]) -> Tensor:
    """The weights in NAME=NUMBER,..., float32 (classes,), 1 where none is given; InputError for others."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.rpartition("="))
        with suppress(ValueError):
            if name not in found and 0 < float(number) < math.inf:
                found[name] = float(number)
                continue
        raise InputError(
            f"class_weights {part!r}: expected 'balanced', or CLASS=NUMBER, each once, with commas between, such as "
            f"{classes[0]}=5"
        )
    for name in found.keys() - set(classes):
        raise InputError(
            f"class_weights: no class {name!r}: expected some of {', '.join(map(repr, classes[:5]))}"
            f"{near_misses(name, classes)}"
        )
    return torch.tensor([found.get(name, 1.0) for name in classes])


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


def _check_texts(recipe: Recipe) -> None:
    """Raise InputError for what is asked of images where texts are learned from."""
    plain = Recipe()
    written = Augment(border="mirror")  # what a run on texts has in its recipe afterwards
    for name in ("image_size", "crop_pct", "augment", "mixup", "cutmix"):
        if getattr(recipe, name) not in (getattr(plain, name), written):
            raise InputError(f"{name}= is for images, and these are texts: leave it out")


def preprocessing_of(backbone: Backbone, recipe: Recipe) -> Prepares:
    """Return how ``train`` prepares images or texts: as the backbone wants them, in the recipe's size."""
    own = backbone.preprocessing or Preprocessing()
    if isinstance(own, TextPreprocessing):
        return replace(own, max_length=recipe.max_length or own.max_length)
    if recipe.max_length is not None:
        raise InputError(
            f"max_length {recipe.max_length} for images: it is for texts; leave it out"
        )
    size = recipe.image_size or own.image_size
    return replace(own, image_size=size, crop_pct=recipe.crop_pct)


def _keep_finished(folder: Path, identity: dict[str, Any]) -> None:
    """Raise CheckpointError where a finished run lies that is not this one over again."""
    try:
        finished(folder, identity)
    except CheckpointError as error:
        raise CheckpointError(
            f"run folder {str(folder)!r} holds a finished run that would be lost ({error}): choose another folder "
            "(out=), or replace it (overwrite=True)"
        ) from error


def _clear(folder: Path) -> None:
    """Forget another run in the folder; its task file stays until replaced."""
    try:
        for old in (CHECKPOINT, RESULT):
            (folder / old).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"run folder {str(folder)!r} cannot be written: {error.strerror}; choose another"
        ) from error


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
