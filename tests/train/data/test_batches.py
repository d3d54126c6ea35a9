"""Batches depend on seed, epoch and place only; augmentation does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from piggyback.errors import DataError
from piggyback.images.preprocessing import Preprocessing
from piggyback.train import Augment, ImageData, from_tensors, load_folder
from piggyback.train.data.batches import (
    EvalBatches,
    TrainBatches,
    augment,
    choose_border,
    draws,
    serve,
    steps_in_epoch,
)
from piggyback.train.data.sets import ImageSet
from piggyback.train.hashing import shuffled, uniforms

VIEW = Preprocessing(16)


def batches(data: ImageData, **options: object) -> TrainBatches:
    settings = {"batch_size": 32, "seed": 0, "epoch": 0}
    return TrainBatches(data.train, VIEW, Augment(), **{**settings, **options})


def test_a_batch_can_be_made_at_any_time(data: ImageData) -> None:
    served = list(serve(batches(data)))
    assert len(served) == steps_in_epoch(data.train, 32) == 3
    late = next(serve(batches(data), start=2))
    assert torch.equal(late[0], served[2][0])
    assert torch.equal(late[1], served[2][1])


def test_a_set_smaller_than_a_batch_is_one_batch(data: ImageData) -> None:
    (only,) = serve(batches(data, batch_size=1000))
    assert len(only[0]) == len(data.train)


def test_seed_and_epoch_change_the_order(data: ImageData) -> None:
    first = batches(data)[0][1]
    assert not torch.equal(first, batches(data, epoch=1)[0][1])
    assert not torch.equal(first, batches(data, seed=1)[0][1])


def test_processes_share_a_batch(data: ImageData) -> None:
    whole = batches(data)[1]
    parts = [batches(data, rank=rank, world=2)[1] for rank in range(2)]
    for rank, (images, labels) in enumerate(parts):
        assert torch.equal(images, whole[0][rank::2])
        assert torch.equal(labels, whole[1][rank::2])


def test_a_loader_process_names_a_bad_image_in_one_line(folder: Path) -> None:
    data = load_folder(folder)
    data.train.files[0].write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"\Aimage '[^\n]*png' cannot be decoded: it is empty[^\n]*\Z"
    ):
        list(serve(EvalBatches(data.train, VIEW, batch_size=4), workers=1))


def test_loader_processes_make_the_same_batches(folder: Path) -> None:
    data = load_folder(folder)
    alone = list(serve(batches(data, batch_size=4), workers=0))
    helped = list(serve(batches(data, batch_size=4), workers=2))
    assert len(alone) == len(helped) == 4
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_evaluation_sees_every_image_once(data: ImageData) -> None:
    whole = [EvalBatches(data.test, VIEW, batch_size=7)[i] for i in range(5)]
    assert torch.equal(torch.cat([x for x, _ in whole]), data.test.images)
    seen = 0
    for rank in range(3):
        part = EvalBatches(data.test, VIEW, batch_size=7, rank=rank, world=3)
        seen += sum(len(labels) for _, labels in serve(part))
    assert seen == len(data.test)


@pytest.mark.parametrize("fill", [None, 77])
def test_shift_moves_by_at_most_the_fraction_and_fills_the_gap(fill: int | None) -> None:
    image = torch.randint(0, 255, (3, 16, 16), dtype=torch.uint8)
    pads = {"mode": "reflect"} if fill is None else {"value": fill}
    padded = F.pad(image.float()[None], (2, 2, 2, 2), **pads)[0].byte()
    colour = None if fill is None else torch.full((3, 1, 1), fill, dtype=torch.uint8)
    views = {(y, x): padded[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)}
    seen = set()
    for row in draws(0, 0, np.arange(400)):
        moved = augment(image, Augment(shift=0.125), 16, row, colour)
        seen.update(place for place, view in views.items() if torch.equal(view, moved))
    assert seen == set(views)


@pytest.mark.parametrize("border", ["mirror", "plain"])
def test_a_plain_border_is_nothing_to_the_network(border: Literal["mirror", "plain"]) -> None:
    view = Preprocessing(16, mean=(0.2, 0.4, 0.6), std=(0.2, 0.2, 0.2))
    white = (torch.full((8, 3, 16, 16), 255, dtype=torch.uint8), torch.arange(8) % 2)
    train = from_tensors("white", ["a", "b"], white, white, white).train
    options = Augment(shift=0.25, border=border)
    made, _ = TrainBatches(train, view, options, batch_size=8, seed=0, epoch=0)[0]
    gap = (made < 255).all(1)
    assert bool(gap.any()) == (border == "plain")
    assert (view.network_input(made).movedim(1, -1)[gap].abs() < 0.01).all()


@pytest.mark.parametrize(
    ("images", "options", "noise", "border"),
    [
        (8, Augment(), 99, "plain"),
        (8, Augment(), 9, "mirror"),
        (8, Augment(flip=True), 99, "mirror"),
        (500, Augment(), 99, "mirror"),
        (8, Augment(border="mirror"), 99, "mirror"),
        (500, Augment(border="plain"), 9, "plain"),
    ],
)
def test_the_border_follows_from_the_images(
    images: int, options: Augment, noise: int, border: str
) -> None:
    pixels = torch.randint(0, noise, (images, 3, 16, 16), dtype=torch.uint8)
    samples = ImageSet(("a", "b"), torch.arange(images) % 2, pixels)
    assert choose_border(options, samples, Preprocessing(16)).border == border


def test_flip_is_off_by_default_and_takes_half() -> None:
    image = torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8)
    for options, expected in ((Augment(shift=0), 0), (Augment(shift=0, flip=True), 500)):
        rows = draws(0, 0, np.arange(1000))
        flips = sum(torch.equal(augment(image, options, 8, r), image.flip(-1)) for r in rows)
        assert abs(flips - expected) <= 60 * (expected > 0)


def test_crop_starts_from_a_larger_image_and_gives_the_size() -> None:
    options = Augment(shift=0, crop=0.3)
    assert options.source_side(16) == 20
    image = torch.randint(0, 255, (3, 20, 20), dtype=torch.uint8)
    made = {augment(image, options, 16, r).float().mean().item() for r in draws(0, 0, np.arange(9))}
    assert len(made) == 9
    assert augment(image, options, 16, draws(0, 0, np.arange(1))[0]).shape == (3, 16, 16)


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_policies_repeat_and_leave_the_global_generator_alone(policy: str) -> None:
    image = torch.randint(0, 255, (3, 16, 16), dtype=torch.uint8)
    row = draws(0, 0, np.array([3]))[0]
    before = torch.get_rng_state()
    one = augment(image, Augment(policy=policy), 16, row)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(augment(image, Augment(policy=policy), 16, row), one)


def test_numbers_by_place_are_uniform_and_orders_are_permutations() -> None:
    numbers = uniforms(0, 0, np.arange(20000), 3)
    assert abs(numbers.mean() - 0.5) < 0.005
    assert abs(numbers.std() - 12**-0.5) < 0.005
    assert abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.03
    assert sorted(shuffled(0, 0, 100).tolist()) == list(range(100))
    assert shuffled(0, 0, 100).tolist() != shuffled(0, 1, 100).tolist()
