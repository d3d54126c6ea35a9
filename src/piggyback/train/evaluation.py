"""Measuring a network on labelled images, and predicting the classes of image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from piggyback.errors import DataError, InputError
from piggyback.images.decode import load_fitted, normalise
from piggyback.images.label_maps import VOID
from piggyback.images.preprocessing import Preprocessing
from piggyback.model.multitask import MultiTaskModel
from piggyback.taskfile.task import Task
from piggyback.train.data.batches import EvalBatches, serve
from piggyback.train.data.folder import list_images
from piggyback.train.data.sets import Split, difference
from piggyback.train.processes import processes, summed
from piggyback.train.speed import Speed

_GLOB = frozenset("*?[")


@dataclass(frozen=True, eq=False)
class Measured:
    """How a network did on a set of images."""

    classes: tuple[str, ...]
    confusion: Tensor
    """int64, (classes, classes): images, or pixels that are not void, of class i called class j."""
    loss: float
    """Mean cross-entropy of an image, or of a pixel, without label smoothing."""
    kind: str = "classification"

    @property
    def count(self) -> int:
        """Number of images, or of pixels that are not void."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Percent: of the images called right; of a segmentation, the mean IoU."""
        return self.right if self.kind == "classification" else self.mean_iou

    @property
    def right(self) -> float:
        """Percent of the images, or of the pixels, called right."""
        return 100 * int(self.confusion.diagonal().sum()) / max(self.count, 1)

    @property
    def mean_iou(self) -> float:
        """Percent: the mean of ``per_class_iou`` over the classes that have one."""
        found = [iou for iou in self.per_class_iou().values() if iou is not None]
        return sum(found) / max(len(found), 1)

    def per_class_iou(self) -> dict[str, float | None]:
        """Return each class's intersection over union in percent.

        That is right / (truth + predicted - right); None for a class in neither truth nor
        prediction.
        """
        right = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) - right
        triples = zip(self.classes, right.tolist(), union.tolist(), strict=True)
        return {name: 100 * hits / total if total else None for name, hits, total in triples}

    def per_class(self) -> dict[str, float | None]:
        """Return the percent called right of each class; None for a class without images."""
        totals = self.confusion.sum(1).tolist()
        right = self.confusion.diagonal().tolist()
        pairs = zip(self.classes, right, totals, strict=True)
        return {name: 100 * hits / total if total else None for name, hits, total in pairs}


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image file."""

    file: str
    classes: tuple[str, ...]
    """Likeliest first."""
    probabilities: tuple[float, ...]


def evaluate(
    model: MultiTaskModel, task: str, images: Split, *, batch_size: int = 64, workers: int = 2
) -> Measured:
    """Return how ``task`` does on ``images``, with the preprocessing stored in the task.

    Raises UnknownTaskError; DataError where the classes of the images are not the task's.
    """
    held = model.get_task(task)
    preprocessing = prepared(held, images.kind)
    if images.classes != held.info.classes:
        raise DataError(
            f"classes of the images differ from those of task {task!r}: "
            f"{difference(held.info.classes, images.classes)}"
        )
    with running(model) as device:
        return measure(
            lambda x: model(x, task=task),
            images,
            preprocessing,
            device=device,
            batch_size=batch_size,
            workers=workers,
        )


def predict(
    model: MultiTaskModel,
    task: str,
    inputs: Iterable[str | Path],
    *,
    top: int = 5,
    batch_size: int = 64,
) -> list[Prediction]:
    """Return the ``top`` classes and their probabilities for each image, in order of ``inputs``.

    An input is a file, a folder (its images at any depth) or a glob pattern. Raises InputError for
    an input that names no image, DataError for a file that cannot be decoded, UnknownTaskError.
    """
    held = model.get_task(task)
    preprocessing, names = prepared(held, "classification"), held.info.classes
    if top < 1:
        raise InputError(f"top {top}: expected 1 or more")
    files = find_images(inputs)
    made: list[Prediction] = []
    with running(model) as device, torch.inference_mode():
        for start in range(0, len(files), batch_size):
            part = files[start : start + batch_size]
            images = torch.stack([load_fitted(file, preprocessing) for file in part])
            x = normalise(images.to(device), preprocessing)
            chances = logits_of(model(x, task=task), len(names)).float().softmax(1)
            values, order = chances.topk(min(top, len(names)), dim=1)
            for file, row, best in zip(part, values.tolist(), order.tolist(), strict=True):
                made.append(Prediction(str(file), tuple(names[i] for i in best), tuple(row)))
    return made


def find_images(inputs: Iterable[str | Path]) -> list[Path]:
    """Return the image files that ``inputs`` name, each once: files, folders, glob patterns.

    Raises InputError for one that names none.
    """
    found: dict[Path, None] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            here = list_images(path)
        elif path.exists() or not _GLOB.intersection(str(given)):
            here = [path] if path.is_file() else []
        else:
            pattern = str(path.relative_to(path.anchor))
            here = sorted(match for match in Path(path.anchor).glob(pattern) if match.is_file())
        if not here:
            raise InputError(
                f"input {str(given)!r}: expected an image file, a folder with images, or a glob "
                "pattern that matches some; found none"
            )
        found.update(dict.fromkeys(here))
    if not found:
        raise InputError("no inputs: expected image files, folders or glob patterns")
    return list(found)


@torch.inference_mode()
def measure(
    network: Callable[[Tensor], Any],
    images: Split,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 0,
    speed: Speed | None = None,
) -> Measured:
    """Return how ``network``, in evaluation mode, does on ``images``, over all processes."""
    state, speed = processes(), speed or Speed()
    classes = len(images.classes)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    losses = torch.zeros(1, device=device)
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
        x, y = normalise(pixels.to(device), preprocessing), class_of_each(labels.to(device))
        if speed.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, speed.dtype, enabled=speed.amp != "no"):
            logits = logits_of(network(x), classes, y.shape[1:]).float()
        losses += F.cross_entropy(logits, y, reduction="sum")
        cells = (y * classes + logits.argmax(1))[y >= 0]
        confusion += torch.bincount(cells, minlength=classes * classes)
    matrix = summed(confusion).view(classes, classes).cpu()
    loss = summed(losses).item() / max(int(matrix.sum()), 1)
    return Measured(images.classes, matrix, loss, images.kind)


def class_of_each(labels: Tensor) -> Tensor:
    """Return labels as int64; of label maps, uint8, with void as -100, which losses leave out.

    >>> class_of_each(torch.tensor([3, 255], dtype=torch.uint8)), class_of_each(torch.tensor([255]))
    (tensor([   3, -100]), tensor([255]))
    """
    if labels.dtype != torch.uint8:
        return labels
    return labels.long().masked_fill_(labels == VOID, -100)


def logits_of(output: Any, classes: int, size: Sequence[int] = ()) -> Tensor:
    """Return a network's output as logits (n, classes), or (n, classes, *size) of a segmentation.

    Raises InputError for anything else.
    """
    shape = (classes, *size)
    if not isinstance(output, Tensor) or tuple(output.shape[1:]) != shape:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        wanted = f"(n, {', '.join(map(str, shape))})"
        advice = "; for label maps take a backbone 'segmentation:NAME'" if size else ""
        raise InputError(f"the network returned {found}: expected logits of shape {wanted}{advice}")
    return output


@contextmanager
def running(model: MultiTaskModel) -> Iterator[torch.device]:
    """Put a model into evaluation mode for a ``with`` block, which gets its device."""
    before = model.training
    model.eval()
    try:
        yield next(model.parameters()).device
    finally:
        model.train(before)


def prepared(task: Task, kind: str) -> Preprocessing:
    """Return how images are prepared for a task, of this kind; InputError where it does not fit."""
    if task.info.kind != kind:
        raise InputError(f"task {task.name!r} is of kind {task.info.kind!r}: expected {kind}")
    if task.info.preprocessing is None:
        raise InputError(
            f"task {task.name!r} does not say how images are prepared for it: "
            "expected preprocessing in its file; train it with one"
        )
    return task.info.preprocessing
