"""Segmentation data in two layouts: a folder of images and label maps for each split, and Pascal VOC's.

ROOT/train/images/a.jpg, ROOT/train/labels/a.png; the same in val and test          CamVid
ROOT/VOCdevkit/VOC2012/: JPEGImages, SegmentationClass, ImageSets/Segmentation      Pascal VOC
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from piggyback.errors import DataError
from piggyback.images.decode import check_image, in_threads, upright_size
from piggyback.images.find import list_images
from piggyback.images.label_maps import VOID, SegmentationSet
from piggyback.images.map_pictures import CAMVID
from piggyback.train.data.folder import split_folders
from piggyback.train.data.sets import ImageData, cut

CAMVID_VOID = 11
CLASSES = "classes.txt"
"""Names the classes of a folder, one per line, in the order of the label maps' values."""
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
"""Pascal VOC's classes, in the order of the label maps' values; 255 is void."""


def load_camvid_layout(
    root: str | Path,
    name: str | None = None,
    *,
    classes: Sequence[str] | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """Return the images and label maps under ``root``, as ``<split>/images`` and ``<split>/labels``.

    A map has its image's name, ends in .png and is of its size. Its values are indices into ``classes``, by default the
    lines of ROOT/classes.txt, or 255 for void; without both they are CamVid's, where 11 is void. Without val/, it is
    cut from train by ``seed``. Raises DataError for what is missing and for what does not fit.
    """
    root = Path(root)
    sets = {
        split: load_segmentation_split(folder, classes=classes)
        for split, folder in split_folders(root).items()
        if (folder / "images").is_dir()
    }
    for split in ("train", "test"):
        if split not in sets:
            raise DataError(
                f"segmentation folder {str(root)!r}: no {split}/images in it: expected "
                f"{split}/images/NAME.jpg and {split}/labels/NAME.png"
            )
    return cut(
        name or root.resolve().name,
        sets["train"],
        sets.get("val"),
        sets["test"],
        val_fraction=val_fraction,
        seed=seed,
    )


def load_segmentation_split(
    folder: str | Path, *, classes: Sequence[str] | None = None
) -> SegmentationSet:
    """Return the images and label maps of one split's folder, checked: ``images`` and ``labels``.

    ``classes`` as for ``load_camvid_layout``; their file lies in the folder or beside it.
    """
    folder = Path(folder)
    names = _named_classes(folder) if classes is None else tuple(classes)
    images = list_images(folder / "images")
    if not images:
        raise DataError(f"segmentation folder {str(folder / 'images')!r} holds no images")
    # File systems write accents in two ways, and archives mix them.
    labels = folder / "labels"
    there = {unicodedata.normalize("NFC", file.name): file for file in labels.glob("*.png")}
    wanted = [f"{image.stem}.png" for image in images]
    maps = [there.get(unicodedata.normalize("NFC", name), labels / name) for name in wanted]
    return _checked(names or CAMVID, images, maps, VOID if names else CAMVID_VOID)


def load_voc(
    root: str | Path, name: str = "voc", *, val_fraction: float = 0.1, seed: int = 0
) -> ImageData:
    """Return Pascal VOC 2012 segmentation: its val list is test, and val is cut from its train list.

    ``root`` holds VOCdevkit/VOC2012, or is that folder. Raises DataError for what is missing.
    """
    root = Path(root)
    places = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
    found = next((p for p in places if (p / "ImageSets" / "Segmentation").is_dir()), None)
    if found is None:
        raise DataError(
            f"Pascal VOC folder {str(root)!r}: expected VOCdevkit/VOC2012 with JPEGImages, "
            "SegmentationClass and ImageSets/Segmentation in it; unpack VOCtrainval_11-May-2012.tar"
        )
    sets = {split: _voc_list(found, file) for split, file in (("train", "train"), ("test", "val"))}
    return cut(name, sets["train"], None, sets["test"], val_fraction=val_fraction, seed=seed)


def is_segmentation_folder(root: str | Path) -> bool:
    """Return whether ``root`` is laid out as ``load_camvid_layout`` reads it, or is one split of it.

    >>> is_segmentation_folder("/no/such/folder")
    False
    """
    root = Path(root)
    folders = (root, *split_folders(root).values()) if root.is_dir() else ()
    return any((f / "images").is_dir() and (f / "labels").is_dir() for f in folders)


def _named_classes(folder: Path) -> tuple[str, ...]:
    """The lines of classes.txt in the folder or above it; nothing where there is none."""
    for place in (folder / CLASSES, folder.resolve().parent / CLASSES):
        if place.is_file():
            lines = place.read_text(encoding="utf-8", errors="replace").splitlines()
            names = tuple(line.strip() for line in lines if line.strip())
            if not names or len(set(names)) != len(names):
                raise DataError(f"{str(place)!r}: expected one class name per line, each once")
            return names
    return ()


def _voc_list(root: Path, split: str) -> SegmentationSet:
    file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        names = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list {str(file)!r} cannot be read ({error}); unpack it again") from error
    images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    maps = [root / "SegmentationClass" / f"{name}.png" for name in names]
    return _checked(VOC, images, maps, VOID)


def _checked(
    classes: Sequence[str], images: Sequence[Path], maps: Sequence[Path], void: int
) -> SegmentationSet:
    for problem in in_threads(_problem, images, maps):
        if problem is not None:
            raise DataError(problem)
    return SegmentationSet(tuple(classes), files=tuple(images), map_files=tuple(maps), void=void)


def _problem(image: Path, label_map: Path) -> str | None:
    """What is wrong with a pair of files, as their headers tell."""
    if not label_map.is_file():
        return f"image {str(image)!r} has no label map: expected {str(label_map)!r}"
    try:
        check_image(image)
        sizes = [upright_size(path) for path in (image, label_map)]
    except DataError as error:
        return str(error)
    if sizes[0] != sizes[1]:
        wide, high = sizes[1]
        return (
            f"label map {str(label_map)!r} is {wide} x {high} pixels: expected "
            f"{sizes[0][0]} x {sizes[0][1]}, the size of its image"
        )
    return None
