"""Measuring a network on labelled images; predicting classes and label maps of image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piggyback.errors import DataError, InputError
from piggyback.images.decode import load_fitted, upright_size
from piggyback.images.find import find_images
from piggyback.images.map_pictures import Frame, at_own_size, shares
from piggyback.kinds import kind_of
from piggyback.kinds.base import Kind, Meter, Score
from piggyback.kinds.classification import Measured as Measured
from piggyback.model.multitask import MultiTaskModel
from piggyback.schemas import Said
from piggyback.taskfile.task import Task
from piggyback.texts.preprocessing import Prepares, TextPreprocessing, as_images
from piggyback.train.data.batches import EvalBatches, serve
from piggyback.train.data.labelled import LabelledSet
from piggyback.train.data.sets import Split, difference, info_of
from piggyback.train.device import Speed, gathered, processes, summed

OnBad = Callable[[Path, DataError], object]
"""What to do about an image that cannot be read."""


@dataclass(frozen=True)
class Prediction:
    """What a task says of one image file, or of one text."""

    file: str
    """The file's path, or the text."""
    said: Said
    """Classes and probabilities, labels, or values with units: by the task's kind."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The likeliest classes or labels, likeliest first."""
        return tuple([one.name for one in self.said.ranking])

    @property
    def probabilities(self) -> tuple[float, ...]:
        """How likely each of ``classes`` is."""
        return tuple([one.probability for one in self.said.ranking])


@dataclass(frozen=True, eq=False)
class Segmented:
    """What a task makes of one image."""

    file: Path
    labels: Tensor
    """uint8, (height, width) of the image itself; 255 where the network does not look."""
    shares: dict[str, float]
    """Percent of the labelled pixels by class, largest first; classes that do not occur left out."""


def evaluate(
    model: MultiTaskModel,
    task: str,
    images: Split,
    *,
    batch_size: int = 64,
    workers: int = 2,
    meter: Meter | None = None,
) -> Score:
    """Return how ``task`` does on ``images``, with the preprocessing stored in the task.

    ``meter`` stands in for that of the task's kind. The images may be of some of the task's classes only. Raises
    UnknownTaskError; DataError where they have others.
    """
    held = model.get_task(task)
    preprocessing = prepared(held, images.kind)
    if isinstance(images, LabelledSet):
        images = images.relabelled(held.info.classes, held.info.units)
    elif images.classes != held.info.classes:
        raise DataError(
            f"classes of the images differ from those of task {task!r}: "
            f"{difference(held.info.classes, images.classes)}"
        )
    with running(model) as device:
        return measure(
            lambda x: model(x, task=task),
            images,
            preprocessing,
            kind_of(held.info),
            device=device,
            batch_size=batch_size,
            workers=workers,
            meter=meter,
        )


def predict(
    model: MultiTaskModel,
    task: str,
    inputs: Iterable[str | Path],
    *,
    top: int = 5,
    batch_size: int = 64,
    on_bad: OnBad | None = None,
) -> list[Prediction]:
    """Return the ``top`` classes and their probabilities for each input, or its values, in order of ``inputs``.

    An input is a text where the task reads texts, else an image file, a folder (its images at any depth) or a glob
    pattern. Raises InputError for an input that names no image, DataError for a file that cannot be decoded,
    UnknownTaskError. ``on_bad`` is called with such a file and its error instead, and the file left out.
    """
    held = model.get_task(task)
    kind = kind_of(held.info)
    if kind.per_pixel:
        raise InputError(
            f"task {held.name!r} is of kind {kind.name!r}: expected classification, or another kind that answers for "
            "whole images; use segment() for label maps"
        )
    preprocessing = prepared(held, kind.name)
    if top < 1:
        raise InputError(f"top {top}: expected 1 or more")
    texts = isinstance(preprocessing, TextPreprocessing)
    given: Sequence[str | Path] = (
        list(inputs) if texts else find_images(inputs, missing=on_bad is not None)
    )
    made: list[Prediction] = []
    with running(model) as device, torch.inference_mode():
        for part, batch in _batches(given, preprocessing, batch_size, on_bad):
            said = kind.answers(kind.checked(model(batch.to(device), task=task)), top, part)
            made += [Prediction(str(each), one) for each, one in zip(part, said, strict=True)]
    return made


@torch.inference_mode()
def measure(
    network: Callable[[Tensor], Any],
    images: Split,
    preprocessing: Prepares,
    kind: Kind | None = None,
    *,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 0,
    speed: Speed | None = None,
    meter: Meter | None = None,
) -> Score:
    """Return how ``network``, in evaluation mode, does on ``images``, over all processes.

    ``kind`` is the task's, by default what the images say; ``meter`` stands in for the kind's own.
    """
    state, speed = processes(), speed or Speed()
    kind = kind or kind_of(info_of(images))
    meter = meter or kind.meter(device)
    batches = EvalBatches(
        images,
        preprocessing,
        batch_size=batch_size,
        rank=state.process_index,
        world=state.num_processes,
    )
    for pixels, labels in serve(batches, workers=workers, pin=device.type == "cuda"):
        if not len(labels):
            continue
        x = speed.laid_out(preprocessing.network_input(pixels.to(device)))
        y = kind.targets(labels.to(device))
        with speed.autocast(device):
            outputs = kind.outputs(network(x), y)
        meter.add(outputs, y)
    return meter.end(summed, gathered)


@contextmanager
def running(model: MultiTaskModel) -> Iterator[torch.device]:
    """Put a model into evaluation mode for a ``with`` block, which gets its device."""
    before = model.training
    model.eval()
    try:
        yield next(model.parameters()).device
    finally:
        model.train(before)


def prepared(task: Task, kind: str) -> Prepares:
    """Return how images or texts are prepared for a task, of this kind; InputError where it does not fit."""
    if task.info.kind != kind:
        raise InputError(f"task {task.name!r} is of kind {task.info.kind!r}: expected {kind}")
    if task.info.preprocessing is None:
        raise InputError(
            f"task {task.name!r} does not say how images are prepared for it: "
            "expected preprocessing in its file; train it with one"
        )
    return task.info.preprocessing


def segment(
    model: MultiTaskModel,
    task: str,
    inputs: Iterable[str | Path],
    *,
    batch_size: int = 16,
    on_bad: OnBad | None = None,
) -> Iterator[Segmented]:
    """Yield the label map of each image that ``inputs`` name, at its own size.

    Inputs and errors are those of ``predict``; InputError for a task that is no segmentation.
    """
    held = model.get_task(task)
    preprocessing, classes = as_images(prepared(held, "segmentation")), held.info.classes
    files = find_images(inputs, missing=on_bad is not None)
    for part, images in _batches(files, preprocessing, batch_size, on_bad):
        with running(model) as device, torch.inference_mode():
            logits = model(images.to(device), task=task).float()
        for file, scores in zip(part, logits, strict=True):
            labels = at_own_size(scores, Frame(*upright_size(file), preprocessing.crop_pct))
            found = {classes[label]: percent for label, percent in shares(labels)}
            yield Segmented(file, labels, found)


def _batches(
    inputs: Sequence[Any], preprocessing: Prepares, size: int, on_bad: OnBad | None
) -> Iterator[tuple[list[Any], Tensor]]:
    """Texts, or image files without those given to ``on_bad``, ``size`` at a time, and as the network takes them."""
    for start in range(0, len(inputs), size):
        part = list(inputs[start : start + size])
        if isinstance(preprocessing, TextPreprocessing):
            yield part, preprocessing.batch(part)
            continue
        found: dict[Path, Tensor] = {}
        for file in part:
            try:
                found[file] = load_fitted(file, preprocessing)
            except DataError as error:
                if on_bad is None:
                    raise
                on_bad(file, error)
        if found:
            yield list(found), preprocessing.network_input(torch.stack(list(found.values())))
