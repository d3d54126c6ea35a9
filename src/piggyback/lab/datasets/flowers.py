"""Flowers-102, read from imagelabels.mat and setid.mat."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets.utils import download_and_extract_archive, download_url

from piggyback.errors import DataError
from piggyback.lab.datasets.info import DatasetInfo
from piggyback.lab.datasets.listed import image_set
from piggyback.lab.datasets.matlab import whole_numbers
from piggyback.train.data.sets import ImageData, ImageSet
from piggyback.train.data.splits import cut

CLASSES = 102
_HOME = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
_FILES = {
    "102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
    "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
    "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
}
"""Published files with their MD5, as torchvision has them."""


def read(root: Path) -> ImageData:
    """Return the set in ``root``: jpg/, imagelabels.mat, setid.mat.

    As in the paper, train is what was published as training and validation images together.
    """
    labelled, source = root / "imagelabels.mat", root / "setid.mat"
    labels = whole_numbers(labelled, "labels")

    def split(*keys: str) -> ImageSet:
        ids = [number for key in keys for number in whole_numbers(source, key)]
        for number in ids:
            if not 1 <= number <= len(labels):
                raise DataError(
                    f"{source}: image {number}: expected 1 to {len(labels)}, as {labelled} has labels"
                )
        return image_set(
            # The files give the classes no names, only numbers.
            [f"{number:03d}" for number in range(1, CLASSES + 1)],
            [root / "jpg" / f"image_{number:05d}.jpg" for number in ids],
            [labels[number - 1] - 1 for number in ids],
            source,
        )

    return cut("flowers", split("trnid", "valid"), None, split("tstid"))


def download(root: Path) -> None:
    """Fetch the set to ``root``/flowers-102. Torchvision's own class needs scipy to do so."""
    archive, *lists = _FILES
    folder = root / "flowers-102"
    download_and_extract_archive(_HOME + archive, folder, md5=_FILES[archive])
    for name in lists:
        download_url(_HOME + name, folder, name, _FILES[name])


FLOWERS = DatasetInfo(
    name="flowers",
    title="Oxford Flowers-102",
    kind="classification",
    classes=CLASSES,
    counts={"train": 2040, "test": 6149},
    image_size=224,
    crop_pct=0.875,
    flip=True,
    licence="no licence is stated; the images belong to their owners",
    how_to_get=f"--download, or 102flowers.tgz, imagelabels.mat and setid.mat from {_HOME}",
    layout="jpg/image_<number>.jpg, imagelabels.mat, setid.mat",
    read=read,
    download=download,
    folders=("flowers", "flowers-102"),
)
