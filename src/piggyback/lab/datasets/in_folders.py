"""Sets whose folders are their annotation: ``<split>/<class>/<file>``."""

from __future__ import annotations

from functools import partial

from piggyback.lab.datasets.info import DatasetInfo
from piggyback.lab.datasets.listed import folder_splits

_AUTHORS = "the archive of the paper's authors, linked from https://github.com/arunmallya/piggyback"
_LAYOUT = "train/<class>/<file>, test/<class>/<file>"

WIKIART = DatasetInfo(
    name="wikiart",
    title="WikiArt, as the paper split it",
    kind="classification",
    classes=195,
    counts={"train": 42129, "test": 10628},
    image_size=224,
    crop_pct=0.875,
    flip=True,
    licence="the paintings belong to their owners; research only",
    how_to_get=_AUTHORS,
    layout=_LAYOUT,
    read=partial(folder_splits, name="wikiart", train="train", test="test"),
)
SKETCH = DatasetInfo(
    name="sketch",
    title="TU-Berlin sketches, as the paper split them",
    kind="classification",
    classes=250,
    counts={"train": 16000, "test": 4000},
    image_size=224,
    crop_pct=0.875,
    flip=True,
    licence="CC BY 4.0",
    how_to_get=_AUTHORS,
    layout=_LAYOUT,
    read=partial(folder_splits, name="sketch", train="train", test="test"),
    folders=("sketch", "sketches"),
)
IMAGENET = DatasetInfo(
    name="imagenet",
    title="ImageNet (ILSVRC 2012); its val is what papers measure",
    kind="classification",
    classes=1000,
    counts={"train": 1281167, "test": 50000},
    image_size=224,
    crop_pct=0.875,
    flip=True,
    licence="non-commercial research and education, under ImageNet's terms of access",
    how_to_get="https://image-net.org/download.php, after signing in; sort val into folders by its ground truth",
    layout="train/<wnid>/<file>, val/<wnid>/<file>",
    read=partial(folder_splits, name="imagenet", train="train", test="val"),
)


def _reduced(
    name: str, title: str, classes: int, train: int, test: int, side: int, flip: bool
) -> DatasetInfo:
    """A part of a public set, small enough to experiment with on a processor; ``side`` is what was used for that."""
    return DatasetInfo(
        name=name,
        title=f"{title}, a part",
        kind="classification",
        classes=classes,
        counts={"train": train, "test": test},
        image_size=side,
        crop_pct=1.0,
        flip=flip,
        licence="that of the whole set",
        how_to_get=f"{name}.tar, made for this project's own measurements; it is not published",
        layout=_LAYOUT,
        read=partial(folder_splits, name=name, train="train", test="test"),
    )


REDUCED = (
    _reduced("gtsrb", "German Traffic Signs (GTSRB)", 43, 3770, 2500, 64, False),
    _reduced("dtd", "Describable Textures, ten classes", 10, 800, 400, 96, True),
    _reduced("cifar10", "CIFAR-10", 10, 5000, 2000, 64, True),
)
