"""Image sets: what they accept, how they are cut, cached and told apart, and which part of an image boxes show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piggyback.errors import DataError
from piggyback.images.decode import Box, check_image, fit, load_fitted, read_image
from piggyback.images.preprocessing import Preprocessing
from piggyback.train import ImageData, ImageSet, from_tensors, load_folder
from piggyback.train.data.sets import cut

BOX = (4, 2, 15, 12)
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


@pytest.mark.parametrize("boxes", [torch.zeros(4, 4), torch.zeros(2, 4, dtype=torch.int64)])
def test_wrong_boxes(boxes: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"expected int64 \(4, 4\), left, top, right, bottom"):
        ImageSet(("a", "b"), LABELS, IMAGES, boxes=boxes)


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


def test_a_damaged_test_image_ends_a_run_before_it_begins(folder: Path) -> None:
    file = folder / "test" / "dog" / "02.png"
    data, pixels = load_folder(folder), bytearray(file.read_bytes())
    middle = len(pixels) // 2
    pixels[middle : middle + 40] = bytes(40)
    file.write_bytes(bytes(pixels))
    with pytest.raises(DataError, match=r"dog/02\.png"):
        data.in_memory(Preprocessing(8), Preprocessing(8), budget=1)


def test_grey_images_are_widened() -> None:
    grey = ImageSet(("a", "b"), LABELS, torch.full((4, 1, 8, 8), 9, dtype=torch.uint8))
    ready = grey.in_memory(Preprocessing(8))
    assert ready.images is not None
    assert torch.equal(ready.images, torch.full((4, 3, 8, 8), 9, dtype=torch.uint8))


def test_the_digest_follows_content_names_and_boxes(data: ImageData, folder: Path) -> None:
    other = ImageSet(data.classes, data.train.labels, data.train.images.clone())
    assert other.digest() == data.train.digest()
    other.images[0, 0, 0, 0] += 1
    assert other.digest() != data.train.digest()
    plain = load_folder(folder).test
    boxed = [replace(plain, boxes=torch.tensor([box] * len(plain))) for box in (BOX, (0, 0, 9, 9))]
    (folder / "test" / "cat" / "00.png").rename(folder / "test" / "cat" / "99.png")
    digests = {load_folder(folder).test.digest()}
    (folder / "test" / "cat" / "99.png").rename(folder / "test" / "cat" / "00.png")
    digests |= {images.digest() for images in (plain, *boxed)}
    assert len(digests) == 4


@pytest.fixture
def photo(tmp_path: Path, save_image: Callable[..., Path]) -> Path:
    return save_image(tmp_path / "a.png")  # 20 x 16


def set_of(path: Path, *boxes: Box) -> ImageSet:
    n = len(boxes)
    return ImageSet(("a", "b"), torch.arange(n) % 2, files=(path,) * n, boxes=torch.tensor(boxes))


def test_a_box_is_what_slicing_gives(photo: Path) -> None:
    left, top, right, bottom = BOX
    whole = read_image(photo)
    assert torch.equal(read_image(photo, box=BOX), whole[:, top:bottom, left:right])
    view = Preprocessing(8)
    expected = fit(whole[:, top:bottom, left:right], view)
    assert torch.equal(load_fitted(photo, view, BOX), expected)
    assert torch.equal(set_of(photo, BOX).load(0, view), expected)
    held = ImageSet(("a", "b"), torch.tensor([0]), whole[None], boxes=torch.tensor([BOX]))
    assert torch.equal(held.load(0, view), expected)


def test_memory_holds_what_the_boxes_show_and_no_boxes(photo: Path) -> None:
    view, boxes = Preprocessing(16), (BOX, (0, 0, 20, 16), (19, 15, 20, 16))
    images = set_of(photo, *boxes)
    ready = images.in_memory(view)
    assert ready.boxes is None
    assert ready.images is not None
    for index in range(len(boxes)):
        assert torch.equal(ready.images[index], images.load(index, view))
    square = ImageSet(
        ("a", "b"),
        torch.tensor([0]),
        torch.randint(0, 255, (1, 3, 16, 16), dtype=torch.uint8),
        boxes=torch.tensor([[0, 0, 8, 8]]),
    )
    assert torch.equal(square.in_memory(view).images[0], square.load(0, view))


def test_boxes_follow_their_images_through_a_cut(photo: Path) -> None:
    boxes = [(i, 0, i + 2, 8) for i in range(10)]
    images = set_of(photo, *boxes)
    chosen = images.subset(torch.tensor([7, 2]))
    assert chosen.boxes.tolist() == [list(boxes[7]), list(boxes[2])]
    data = cut("x", images, None, images)
    held = sorted(data.train.boxes.tolist() + data.val.boxes.tolist())
    assert held == [list(box) for box in boxes]


def test_a_box_in_a_jpeg_decoded_small_shows_the_same(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1000).astype(np.uint8)
    grid = np.stack(
        [np.tile(ramp, (800, 1)), np.tile(ramp[:800, None], (1, 1000)), np.full((800, 1000), 9)], -1
    )
    Image.fromarray(grid.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    box, view = (203, 101, 901, 703), Preprocessing(32)
    assert read_image(tmp_path / "a.jpg", at_least=64, box=box).shape[-1] < 100
    quick = load_fitted(tmp_path / "a.jpg", view, box).float()
    slow = fit(read_image(tmp_path / "a.jpg", box=box), view).float()
    assert (quick - slow).abs().max() <= 4
    small = read_image(tmp_path / "a.jpg", at_least=64, box=(10, 10, 80, 80))
    assert small.shape == (3, 70, 70)  # decoded in full


def test_a_box_counts_pixels_as_they_are_stored(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    image.putpixel((0, 0), (200, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    part = read_image(tmp_path / "a.png", box=(0, 0, 3, 2))
    assert part.shape == (3, 3, 2)
    assert part[:, 0, -1].tolist() == [200, 30, 40]


def test_a_box_beyond_the_edge_is_clipped(photo: Path) -> None:
    assert torch.equal(read_image(photo, box=(-5, -5, 99, 99)), read_image(photo))
    check_image(photo, box=(-5, -5, 99, 99))


@pytest.mark.parametrize("box", [(20, 0, 30, 10), (5, 5, 5, 9), (5, 9, 8, 2), (-9, 0, 0, 9)])
def test_a_box_with_nothing_in_it_is_refused_by_name(photo: Path, box: Box) -> None:
    for use in (
        lambda: check_image(photo, box=box),
        lambda: set_of(photo, box).load(0, Preprocessing(8)),
    ):
        with pytest.raises(DataError, match=r"a\.png'?: box .* none of its 20 x 16 pixels"):
            use()
    held = ImageSet(
        ("a", "b"), torch.tensor([0]), read_image(photo)[None], boxes=torch.tensor([box])
    )
    with pytest.raises(DataError, match=r"'number 0': box"):
        held.load(0, Preprocessing(8))
