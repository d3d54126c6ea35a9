"""Training and measuring: data, recipes, methods, the loop, checkpoints."""

from piggyback.training import learners as learners  # registers masks, head and finetune
from piggyback.training.data.augment import Augment
from piggyback.training.data.folder import load_folder, load_split
from piggyback.training.data.label_maps import SegmentationSet
from piggyback.training.data.segmentation import load_camvid_layout, load_voc
from piggyback.training.data.sets import ImageData, ImageSet
from piggyback.training.data.splits import from_tensors
from piggyback.training.evaluate import Measured, Prediction, evaluate, predict
from piggyback.training.events import EpochRow, Listener, Plan, Step
from piggyback.training.lora import load_lora
from piggyback.training.methods import METHODS
from piggyback.training.recipe import Recipe
from piggyback.training.result import TrainResult
from piggyback.training.segmenting import segment
from piggyback.training.train import train

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
    "load_lora",
    "load_split",
    "load_voc",
    "predict",
    "segment",
    "train",
]
