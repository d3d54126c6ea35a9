"""A task's answers to labelled images, collected for a report."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piggyback.images.label_maps import class_of_each
from piggyback.kinds.base import logits_of
from piggyback.model.multitask import MultiTaskModel
from piggyback.train.data.batches import EvalBatches, serve
from piggyback.train.data.labelled import LabelledSet
from piggyback.train.data.sets import Split
from piggyback.train.evaluation import prepared, running
from piggyback.train.report import Outcome


@torch.inference_mode()
def outcome_of(
    model: MultiTaskModel, task: str, images: Split, *, batch_size: int = 64, workers: int = 2
) -> Outcome:
    """Return the task's answers to ``images``, in their order; prepared, and refused, as ``evaluate`` does."""
    held = model.get_task(task)
    info, preprocessing = held.info, prepared(held, images.kind)
    if isinstance(images, LabelledSet):
        images = images.relabelled(info.classes)
    answers, truth = [], []
    with running(model) as device:
        batches = EvalBatches(images, preprocessing, batch_size=batch_size)
        for pixels, labels in serve(batches, workers=workers, pin=device.type == "cuda"):
            y = class_of_each(labels.to(device))
            output = model(preprocessing.network_input(pixels.to(device)), task=task)
            logits = logits_of(output, len(info.classes), y.shape[1:]).float()
            if images.kind == "segmentation":
                truth += [
                    _counted(*pair, len(info.classes)) for pair in zip(logits, y, strict=True)
                ]
            else:
                answers.append(logits.softmax(1).double().cpu().numpy())
                truth.append(y.cpu().numpy())
    empty = np.zeros((len(images), 0))
    if images.kind == "segmentation":
        return Outcome(task, images.kind, info.classes, empty, np.stack(truth))
    return Outcome(task, images.kind, info.classes, np.concatenate(answers), np.concatenate(truth))


def _counted(scores: Tensor, labels: Tensor, classes: int) -> NDArray[np.int64]:
    """How many pixels of class i were called class j in one image, void left out."""
    cells = (labels * classes + scores.argmax(0))[labels >= 0]
    return torch.bincount(cells, minlength=classes**2).view(classes, classes).cpu().numpy()
