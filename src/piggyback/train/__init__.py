"""Training and measuring: data, recipes, methods, the loop, checkpoints."""

from piggyback.images.label_maps import SegmentationSet
from piggyback.train.data.augment import Augment
from piggyback.train.data.folder import load_folder, load_split
from piggyback.train.data.segmentation import load_camvid_layout, load_voc
from piggyback.train.data.sets import ImageData, ImageSet
from piggyback.train.data.splits import from_tensors
from piggyback.train.evaluate import Measured, Prediction, evaluate, predict
from piggyback.train.events import EpochRow, Listener, Plan, Step
from piggyback.train.methods import METHODS
from piggyback.train.recipe import Recipe
from piggyback.train.result import TrainResult
from piggyback.train.segmenting import segment
from piggyback.train.train import train

__all__ = [
    "METHODS",
    "Augment",
    "EpochRow",
    "ImageData",
    "ImageSet",
    "Listener",
    "Measured",
    "Plan",
    "Prediction",
    "Recipe",
    "SegmentationSet",
    "Step",
    "TrainResult",
    "evaluate",
    "from_tensors",
    "load_camvid_layout",
    "load_folder",
    "load_split",
    "load_voc",
    "predict",
    "segment",
    "train",
]
