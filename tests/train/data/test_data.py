"""Image sets: what they accept, how they are cut, cached and told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from piggyback.errors import DataError
from piggyback.images.preprocessing import Preprocessing
from piggyback.train import ImageData, ImageSet, from_tensors, load_folder
from piggyback.train.data.sets import cut

IMAGES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.float(), LABELS, r"images torch.float32 .*expected uint8"),
        (IMAGES[:, :2], LABELS, r"\(4, 2, 8, 8\).*expected uint8 \(n, 3"),
        (IMAGES[:3], LABELS, r"labels torch.int64 \(4,\): expected int64 \(3,\)"),
        (IMAGES, LABELS.float(), r"labels torch.float32"),
        (IMAGES, LABELS + 1, r"labels from 1 to 2: expected 0 to 1"),
        (IMAGES, LABELS - 1, r"labels from -1 to 0"),
    ],
)
def test_wrong_tensors(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageSet(("a", "b"), labels, images)


def test_every_class_keeps_an_image_to_learn_from() -> None:
    labels = torch.tensor([0] * 40 + [1] * 2 + [2])
    images = torch.arange(43, dtype=torch.uint8).view(43, 1, 1, 1).expand(43, 3, 4, 4)
    data = from_tensors("x", ["a", "b", "c"], (images, labels), (images, labels))
    many, one, none = data.val.counts()
    assert 1 <= many <= 9
    assert (one, none) == (1, 0)
    assert data.train.counts() == [40 - many, 1, 1]


def test_what_cannot_be_cut() -> None:
    single = ImageSet(("a", "b"), torch.tensor([0, 1]), IMAGES[:2])
    with pytest.raises(DataError, match="val cannot be cut"):
        cut("x", single, None, single)
    with pytest.raises(DataError, match=r"val fraction 1\.5"):
        cut("x", single, None, single, val_fraction=1.5)
    whole = ImageSet(("a", "b"), LABELS, IMAGES)
    nothing = whole.subset(torch.tensor([], dtype=torch.int64))
    with pytest.raises(DataError, match="no images in test"):
        cut("x", whole, whole, nothing)


def test_memory_and_files_hold_the_same_pixels(folder: Path) -> None:
    data, view = load_folder(folder), Preprocessing(12)
    cached = data.in_memory(view, view)
    assert cached.train.images is not None
    for index in (0, 7, len(data.train) - 1):
        assert torch.equal(cached.train.images[index], data.train.load(index, view))
    assert torch.equal(cached.test.labels, data.test.labels)


def test_a_set_beyond_the_budget_stays_on_disk(folder: Path) -> None:
    data, view = load_folder(folder), Preprocessing(12)
    bytes_needed = 28 * 3 * 12 * 12
    assert data.in_memory(view, view, budget=bytes_needed - 1) is data
    assert data.in_memory(view, view, budget=bytes_needed) is not data


def test_grey_images_are_widened() -> None:
    grey = ImageSet(("a", "b"), LABELS, torch.full((4, 1, 8, 8), 9, dtype=torch.uint8))
    ready = grey.in_memory(Preprocessing(8))
    assert ready.images is not None
    assert torch.equal(ready.images, torch.full((4, 3, 8, 8), 9, dtype=torch.uint8))


def test_the_digest_follows_content(data: ImageData, folder: Path) -> None:
    other = ImageSet(data.classes, data.train.labels, data.train.images.clone())
    assert other.digest() == data.train.digest()
    other.images[0, 0, 0, 0] += 1
    assert other.digest() != data.train.digest()
    before = load_split_digest(folder)
    (folder / "test" / "cat" / "00.png").rename(folder / "test" / "cat" / "99.png")
    assert load_split_digest(folder) != before


def load_split_digest(folder: Path) -> str:
    return load_folder(folder).test.digest()
