"""Training and measuring: data, recipes, methods, the loop, checkpoints."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piggyback.images.label_maps import SegmentationSet as SegmentationSet
    from piggyback.train.data.folder import load_folder as load_folder
    from piggyback.train.data.folder import load_split as load_split
    from piggyback.train.data.segmentation import load_camvid_layout as load_camvid_layout
    from piggyback.train.data.segmentation import load_voc as load_voc
    from piggyback.train.data.sets import ImageData as ImageData
    from piggyback.train.data.sets import ImageSet as ImageSet
    from piggyback.train.data.splits import from_tensors as from_tensors
    from piggyback.train.evaluation import Measured as Measured
    from piggyback.train.evaluation import Prediction as Prediction
    from piggyback.train.evaluation import evaluate as evaluate
    from piggyback.train.evaluation import predict as predict
    from piggyback.train.events import EpochRow as EpochRow
    from piggyback.train.events import Listener as Listener
    from piggyback.train.events import Plan as Plan
    from piggyback.train.events import Step as Step
    from piggyback.train.methods import METHODS as METHODS
    from piggyback.train.recipe import Augment as Augment
    from piggyback.train.recipe import Recipe as Recipe
    from piggyback.train.result import TrainResult as TrainResult
    from piggyback.train.segmenting import segment as segment
    from piggyback.train.training import train as train

_HOMES = {
    "METHODS": "train.methods",
    "Augment": "train.recipe",
    "EpochRow": "train.events",
    "ImageData": "train.data.sets",
    "ImageSet": "train.data.sets",
    "Listener": "train.events",
    "Measured": "train.evaluation",
    "Plan": "train.events",
    "Prediction": "train.evaluation",
    "Recipe": "train.recipe",
    "SegmentationSet": "images.label_maps",
    "Step": "train.events",
    "TrainResult": "train.result",
    "evaluate": "train.evaluation",
    "from_tensors": "train.data.splits",
    "load_camvid_layout": "train.data.segmentation",
    "load_folder": "train.data.folder",
    "load_split": "train.data.folder",
    "load_voc": "train.data.segmentation",
    "predict": "train.evaluation",
    "segment": "train.segmenting",
    "train": "train.training",
}
"""Where each public name comes from, imported when it is asked for: a recipe and its help page need no torch."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Return a public name, imported now."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"piggyback.{_HOMES[name]}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
