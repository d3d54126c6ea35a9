"""Training and measuring: data, recipes, methods, the loop, checkpoints.

Reading order: recipe.py, training.py, loop.py, learners.py, data/sets.py.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piggyback.images.label_maps import SegmentationSet
    from piggyback.train.data.dataset import from_datasets
    from piggyback.train.data.folder import load_folder, load_split
    from piggyback.train.data.segmentation import load_camvid_layout, load_voc
    from piggyback.train.data.sets import ImageData, ImageSet, from_tensors
    from piggyback.train.data.table import load_table
    from piggyback.train.data.text import TextSet
    from piggyback.train.evaluation import Measured, Prediction, evaluate, predict, segment
    from piggyback.train.events import EpochRow, Listener, Plan, Step
    from piggyback.train.methods import METHODS
    from piggyback.train.recipe import Augment, Recipe
    from piggyback.train.result import TrainResult
    from piggyback.train.training import train

__all__ = [
    "METHODS", "Augment", "EpochRow", "ImageData", "ImageSet", "Listener", "Measured", "Plan",
    "Prediction", "Recipe", "SegmentationSet", "Step", "TextSet", "TrainResult", "evaluate",
    "from_datasets", "from_tensors",
    "load_camvid_layout", "load_folder", "load_split", "load_table", "load_voc", "predict",
    "segment", "train",
]  # fmt: skip

_NAMES = {
    "data.dataset": "from_datasets",
    "data.folder": "load_folder load_split",
    "data.segmentation": "load_camvid_layout load_voc",
    "data.sets": "ImageData ImageSet SegmentationSet from_tensors",
    "data.text": "TextSet",
    "data.table": "load_table",
    "evaluation": "Measured Prediction evaluate predict segment",
    "events": "EpochRow Listener Plan Step",
    "methods": "METHODS",
    "recipe": "Augment Recipe",
    "result": "TrainResult",
    "training": "train",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
"""Where each public name comes from. It is imported when it is asked for: a help page needs a recipe and no torch."""


def __getattr__(name: str) -> Any:
    """Return a public name, imported now."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    value = globals()[name] = getattr(module, name)
    return value
