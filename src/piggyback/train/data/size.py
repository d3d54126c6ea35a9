"""The side of the square that the network sees, where a recipe names none: as large as the images are.

shorter sides of the images -> median -> nearest multiple of 32, from 64 to the network's own
                                         (its own too where it takes no other)
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

from piggyback.errors import InputError
from piggyback.images.label_maps import SegmentationSet
from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.texts.preprocessing import Prepares, TextPreprocessing, as_images
from piggyback.train.data.sets import ImageSet, Split
from piggyback.train.data.text import TextSet
from piggyback.zoo.load import refusal

LOOKED_AT = 200
"""Images whose size is read, at most."""
MULTIPLE = 32
"""How much smaller most networks make an image before they average over it."""
SMALLEST = 64
"""Below, that average would be over a single place."""


@dataclass(frozen=True)
class ImageSize:
    """A side in pixels, or a length in tokens, and, in a few words, why."""

    side: int
    reason: str


def held_side(images: ImageSet | SegmentationSet) -> int:
    """Return the median of the images' shorter sides, in pixels, from evenly spaced ones' headers.

    Raises DataError, naming the file, for a header that cannot be read.
    """
    spaced = range(0, len(images), -(-len(images) // LOOKED_AT))
    return round(statistics.median(images.shorter_side(index) for index in spaced))


def side_for(held: int, native: int) -> int:
    """Return the side for images that hold ``held`` pixels and a network trained on ``native``.

    >>> [side_for(held, native=224) for held in (32, 64, 79, 80, 104, 1000)], side_for(9, native=16)
    ([64, 64, 64, 96, 96, 224], 16)
    """
    nearest = MULTIPLE * ((held + MULTIPLE // 2) // MULTIPLE)
    return min(max(nearest, SMALLEST), native)


def native_side(backbone: Backbone) -> int:
    """Return the side that the backbone was trained on, in pixels; 224 where it does not say."""
    return as_images(backbone.preprocessing or Preprocessing()).image_size


def size_of(preprocessing: Prepares) -> str:
    """Return the size of what the network sees, in words.

    >>> size_of(Preprocessing(64))
    '64 px'
    """
    if isinstance(preprocessing, TextPreprocessing):
        return f"{preprocessing.max_length} tokens at most"
    return f"{preprocessing.image_size} px"


def choose_length(own: TextPreprocessing, texts: TextSet, asked: int | None) -> ImageSize:
    """Return the most tokens that a text keeps: as ``asked``, or as many as the network takes.

    Raises InputError where more is asked than that.
    """
    if asked is not None and asked > own.max_length:
        raise InputError(
            f"max_length {asked}: the network takes {own.max_length} tokens; ask for fewer"
        )
    most = asked or own.max_length
    cut = texts.longer_than(replace(own, max_length=most))
    why = "as asked" if asked else "as many as the network takes"
    return ImageSize(most, f"{why}; {cut} of {len(texts)} training texts are longer and are cut")


def choose_size(backbone: Backbone, images: Split, asked: int | None = None) -> ImageSize:
    """Return the size to train on ``images`` in: as ``asked``, or what they hold if the network takes that.

    Raises DataError as ``held_side``.
    """
    if isinstance(backbone.preprocessing, TextPreprocessing):
        raise InputError("images for a backbone that reads texts: expected one that sees images")
    if isinstance(images, TextSet):
        raise InputError(
            "texts for a backbone that sees images: expected one that reads texts, such as minilm_l6"
        )
    if asked is not None:
        return ImageSize(asked, "as asked")
    native = native_side(backbone)
    if backbone.size_given:
        return ImageSize(native, "as the backbone was loaded")
    held = held_side(images)
    side = side_for(held, native)
    reason = f"the {'files' if images.images is None else 'images'} hold {held}"
    if side != native and refusal(backbone.module, side) is not None:
        return ImageSize(native, f"{reason}, but the network does not take {side}")
    return ImageSize(side, reason)
