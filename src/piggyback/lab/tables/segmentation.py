"""Segmentation side by side: a table with a row per class, and pictures of what methods make of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import cast

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

from piggyback.errors import InputError
from piggyback.images.decode import normalise
from piggyback.images.label_maps import VOID
from piggyback.images.map_pictures import colours_of
from piggyback.lab.tables.formats import Entry, Grid
from piggyback.lab.tables.plots import save_all
from piggyback.lab.tables.rows import mean_of_known
from piggyback.model.heads import new_head
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.backbone import Backbone
from piggyback.network.frozen import replace_module
from piggyback.texts.preprocessing import as_images
from piggyback.train.data.sets import ImageData
from piggyback.train.data.text import TextSet
from piggyback.train.evaluation import Measured, measure
from piggyback.train.recipe import Recipe
from piggyback.train.result import TrainResult
from piggyback.train.training import preprocessing_of

_DRAWN = 4  # test images
_BATCH = 16


def compare_segmentation(
    backbone: Backbone, data: ImageData, runs: Mapping[str, Sequence[TrainResult]], folder: Path
) -> tuple[Path, ...]:
    """Return files in ``folder``: a table of all ``runs`` on test, and pictures by each label's first run.

    ``runs``: results of the methods masks, head and finetune on ``data``, a list for each label.
    Four images from evenly over test are drawn. Raises InputError where runs do not go together:
    they must have the same preprocessing, since pictures show what the networks see.
    """
    assert not isinstance(data.test, TextSet), "of segmentation tasks"
    prepared = {
        as_images(preprocessing_of(backbone, Recipe.from_json(one.provenance["recipe"])))
        for results in runs.values()
        for one in results
    }
    if len(prepared) > 1:
        sizes = sorted(one.image_size for one in prepared)
        raise InputError(f"runs with images of {sizes} pixels: expected the same preprocessing")
    (preprocessing,) = prepared
    chosen = torch.linspace(0, len(data.test) - 1, min(len(data.test), _DRAWN)).long()
    shown = data.test.subset(chosen).in_memory(preprocessing)
    pictures = torch.stack([shown.load(i, preprocessing) for i in range(len(shown))])
    measured: dict[str, list[Measured]] = {}
    maps = {"truth": shown.targets(torch.arange(len(shown)), preprocessing)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for label, results in runs.items():
        measured[label] = []
        for result in results:
            network = network_of(backbone, result).to(device)
            found = measure(network, data.test, preprocessing, device=device, batch_size=_BATCH)
            measured[label].append(cast(Measured, found))
            if label not in maps:
                with torch.inference_mode():
                    logits = network(normalise(pictures.to(device), preprocessing))
                maps[label] = logits.argmax(1).byte().cpu()
    texts = {"per-class.md": iou_table(measured)}
    figure = side_by_side(pictures, maps, data.classes)
    return save_all(folder, texts, {"side-by-side.png": figure})


def network_of(backbone: Backbone, result: TrainResult) -> nn.Module:
    """Return a plain network, in evaluation mode, with what a run has learned on ``backbone``.

    The backbone's module stays as it is. Raises BackboneMismatchError for a task of other weights,
    InputError for a method that leaves neither a task nor all weights.
    """
    module = copy.deepcopy(backbone.module)
    if result.task is not None:
        model = MultiTaskModel(module, head=backbone.head, source=backbone.source)
        model.add_task(result.task)
        model.set_task(result.name)
        return module.eval()
    if result.state is None or result.method != "finetune":
        raise InputError(
            f"run {result.name!r} of method {result.method!r}: expected masks, head or finetune"
        )
    bias = [t for name, t in result.state.items() if name.startswith(f"{backbone.head}.")][-1]
    with torch.random.fork_rng(devices=[]):  # its values are overwritten
        head = new_head(module.get_submodule(backbone.head), len(bias))
    replace_module(module, backbone.head, head)
    module.load_state_dict(dict(result.state))
    return module.eval()


def iou_table(measured: Mapping[str, Sequence[Measured]]) -> str:
    """Return the IoU of each class in Markdown, a column per label, and the means; in percent.

    Several measurements give their mean, and for the last rows the standard deviation too.

    >>> found = Measured(("sky", "road"), torch.tensor([[3, 1], [0, 4]]), 0.1, "segmentation")
    >>> print(iou_table({"masks": [found]}))
    | class | masks |
    |---|--:|
    | sky | 75.0 |
    | road | 80.0 |
    | mean IoU | 77.50 |
    | pixels right | 87.50 |
    <BLANKLINE>
    """
    columns = list(measured.values())
    lines = []
    for name in columns[0][0].classes:
        found = [mean_of_known(one.per_class_iou()[name] for one in column) for column in columns]
        lines.append([name, *("-" if iou is None else f"{iou:.1f}" for iou in found)])
    means = [[one.mean_iou for one in column] for column in columns]
    right = [[one.right for one in column] for column in columns]
    lines += [["mean IoU", *map(_with_spread, means)], ["pixels right", *map(_with_spread, right)]]
    entries = [[Entry(text) for text in line] for line in lines]
    return Grid(["class", *measured], entries, names=1).markdown()


def side_by_side(images: Tensor, maps: Mapping[str, Tensor], classes: Sequence[str]) -> Figure:
    """Return a figure with a row per image: itself, then its label maps under their titles.

    ``images`` uint8 (n, 3, h, w), ``maps`` uint8 (n, h, w) each; void is white. Below, the colour of
    each class that occurs.

    >>> images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    >>> maps = {"truth": torch.zeros(1, 8, 8, dtype=torch.uint8)}
    >>> [axes.get_title() for axes in side_by_side(images, maps, ["sky"]).axes]
    ['image', 'truth']
    """
    table = torch.full((256, 3), 255, dtype=torch.uint8)
    table[: len(classes)] = torch.tensor(colours_of(classes), dtype=torch.uint8)
    columns = {"image": images.permute(0, 2, 3, 1)}
    columns |= {title: table[found.long()] for title, found in maps.items()}
    shape = images.shape[-2] / images.shape[-1]
    figure = Figure(
        figsize=(2.1 * len(columns), 2.1 * shape * len(images) + 0.9), layout="constrained"
    )
    panels = figure.subplots(len(images), len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        for row, picture in enumerate(pictures):
            axes = panels[row, column]
            axes.imshow(picture.numpy(), interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title)
    shown = torch.cat([found.flatten() for found in maps.values()])
    counted = torch.bincount(shown, minlength=len(table))
    handles = [
        Patch(
            facecolor=(table[label] / 255).tolist(),
            edgecolor="#888888",
            label="void" if label == VOID else classes[label],
        )
        for label in counted.nonzero().flatten().tolist()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def _with_spread(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}"
