"""Data sets in torch's way: anybody's, timm's, and torchvision's by name."""

from __future__ import annotations

import itertools
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from piggyback.errors import DataError
from piggyback.images.preprocessing import Preprocessing
from piggyback.train import from_datasets, from_tensors, train
from piggyback.train.data.dataset import torchvision_data
from support.encoded_pictures import noise
from support.training_toys import assert_same, interrupted


def drawn(seed):
    return noise(seed, side=16)


class Pairs(Dataset):
    """Pictures of red, green and blue under noise."""

    classes = ("red", "green", "blue")

    def __init__(self, count=60, change=None):
        self.count, self.change = count, change or {}

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        pixels = np.array(drawn(index)) // 2
        pixels[..., index % 3] += 100
        return self.change.get(index, (Image.fromarray(pixels), index % 3))


def test_a_run_on_a_data_set_is_that_on_its_tensors_and_resumes(backbone, recipe, tmp_path):
    given = Pairs()
    arrays = [np.array(given[i][0]) for i in range(60)]
    pixels = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    same = from_tensors("a", given.classes, (torch.stack(pixels), torch.arange(60) % 3))
    whole = train(backbone, given, "a", recipe())
    assert_same(whole.task, train(backbone, same, "a", recipe()).task)
    assert whole.task.info.classes == ("red", "green", "blue")
    assert_same(interrupted(backbone, given, "a", recipe(), tmp_path).task, whole.task)


def test_splits_by_name_and_images_in_two_of_them(backbone, recipe):
    parts = {"train": Subset(Pairs(), range(40)), "test": Subset(Pairs(), range(36, 60))}
    result = train(backbone, parts, "a", recipe("head", epochs=1))
    assert result.task.info.classes == ("red", "green", "blue")
    data = from_datasets("a", **parts)
    assert (len(data.train) + len(data.val), len(data.test)) == (40, 24)
    assert data.notes == ("4 images of test are also in train, byte for byte; they were kept",)
    with pytest.raises(DataError, match=r"'valid'.*expected 'train'"):
        train(backbone, {"train": Pairs(), "valid": Pairs()}, "a", recipe())


def test_labels_say_the_kind_and_images_may_be_files_or_tensors(tmp_path):
    drawn(0).save(tmp_path / "a.png")
    data = [tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()]
    pixels = torch.from_numpy(np.array(drawn(0))).permute(2, 0, 1)
    several = [(image, np.array([i == 0, True])) for i, image in enumerate([*data, pixels] * 8)]
    labels = from_datasets("a", several, several, several, classes=["x", "y"])
    assert labels.kind == "multilabel"
    for i in range(4):
        assert torch.equal(labels.train.load(i, Preprocessing(16)), pixels)
    numbers = [(drawn(i), i / 2) for i in range(20)]
    found = from_datasets("a", numbers, numbers, numbers, classes=["height"])
    assert (found.kind, found.train.labels[3].tolist()) == ("regression", [1.5])
    unnamed = TensorDataset(pixels[None].expand(9, -1, -1, -1), torch.arange(9) % 3)
    plain = from_datasets("a", unnamed, Pairs(9), Pairs(9))
    assert plain.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("item", "wanted"),
    [
        ((torch.zeros(3, 8, 8), 0), "item 7: image tensor torch.float32.*uint8"),
        (("none.png", 0), r"item 7: .*none\.png"),
        ((b"\x89PNG", 0), "item 7: image.*decoded"),
        ((drawn(0), "red"), "item 7: label 'red'"),
        ((drawn(0), -1), "item 7: label -1: expected 0 to 2"),
        ((drawn(0), 3), "item 7: label 3: expected 0 to 2"),
        ((drawn(0), [0.5]), r"item 7: label \[0.5\]: expected one as of item 0"),
        ({"image": drawn(0)}, r"item 7 is a dict: expected a pair"),
        ((drawn(0), None), "item 7: label None"),
    ],
)
def test_what_is_wrong_is_named_with_its_item(item, wanted):
    with pytest.raises(DataError, match=f"a: train, {wanted}") as caught:
        from_datasets("a", Pairs(change={7: item}))
    assert "\n" not in str(caught.value)


class Stream(IterableDataset):
    """``Pairs`` one after another, each in the same tensor."""

    classes = Pairs.classes

    def __init__(self, pairs, forever=False):
        self.pairs, self.forever = pairs, forever

    def __iter__(self):
        held = torch.empty(3, 16, 16, dtype=torch.uint8)
        while True:
            for image, label in self.pairs:
                if isinstance(image, Image.Image):
                    image = held.copy_(torch.from_numpy(np.array(image)).permute(2, 0, 1))
                yield image, label
            if not self.forever:
                return


def test_a_run_on_an_iterable_data_set_is_that_on_its_items(backbone, recipe):
    pairs = [Pairs()[i] for i in range(60)]
    wanted = train(backbone, Pairs(), "a", recipe())
    assert_same(train(backbone, Stream(pairs), "a", recipe(workers=1)).task, wanted.task)


def test_iterable_data_sets_that_do_not_end_in_time_are_refused(monkeypatch):
    pairs = [Pairs()[i] for i in range(6)]
    with monkeypatch.context() as change:
        change.setattr("piggyback.train.data.dataset.CACHE_BYTES", 7 * 768)
        from_datasets("a", Pairs(), Stream(pairs), Stream(pairs))
        with pytest.raises(
            DataError, match=r"a: train is a Stream of more than 7 images.*load_table"
        ):
            from_datasets("a", Stream(pairs, forever=True))
    monkeypatch.setattr("piggyback.train.data.dataset.MOST_HELD", 20)
    with pytest.raises(DataError, match=r"a: train is a Stream of more than 20 images"):
        from_datasets("a", Stream([(b"\x89PNG", 0)], forever=True))
    for item, wanted in (
        (b"\x89PNG", "decoded"),
        (torch.zeros(3, 8, 8), "uint8"),
        ("none.png", "none"),
    ):
        with pytest.raises(DataError, match=f"a: train, item 6: .*{wanted}"):
            from_datasets("a", Stream([*pairs, (item, 0)]))


def test_data_sets_without_items_are_refused():
    with pytest.raises(DataError, match="a: train is a generator"):
        from_datasets("a", (pair for pair in Pairs()))
    for empty in (Pairs(0), Stream([])):
        with pytest.raises(DataError, match="a: test is empty"):
            from_datasets("a", Pairs(), empty)


@pytest.mark.parametrize("name", ["", "hfds/pets", "hfids/pets"])
def test_timms_data_sets_have_their_classes_in_the_reader(tmp_path, monkeypatch, name):
    from timm.data import create_dataset

    if name:  # Hugging Face's set of a local folder; the second is iterable
        monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
        pytest.importorskip("datasets", reason="needs the extra 'hf'").disable_progress_bars()
    monkeypatch.chdir(tmp_path)
    for i in range(24):
        place = tmp_path / "pets" / "train" / ("cat", "dog")[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        drawn(i).save(place)
    root = tmp_path / ("cache" if name else "pets")
    more = {"num_samples": 24} if name == "hfids/pets" else {}
    given = create_dataset(name, root=str(root), split="train", **more)
    assert isinstance(given, IterableDataset) == bool(more)
    data = from_datasets("pets", given, classes=["cat", "dog"] if more else None)
    assert data.classes == ("cat", "dog")
    assert sum(len(part) for part in data.splits().values()) == 24


# -- torchvision's by name -------------------------------------------------------------------------


@pytest.fixture
def mnist(tmp_path):
    """Files as MNIST's publishers lay them out: 40 grey digits to learn from, 10 to test on."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 40), ("t10k", 10)):
        pixels = np.random.default_rng(count).integers(0, 255, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">II", 2049, count)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return tmp_path


@pytest.fixture
def food(tmp_path):
    """Two dishes, laid out as Food-101."""
    root = tmp_path / "food-101"
    (root / "meta").mkdir(parents=True)
    for split, numbers in (("train", range(20)), ("test", range(20, 30))):
        lists = {dish: [f"{dish}/{i}" for i in numbers] for dish in ("apple_pie", "waffles")}
        (root / "meta" / f"{split}.json").write_text(json.dumps(lists))
        for name in itertools.chain(*lists.values()):
            place = root / "images" / f"{name}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            drawn(int(place.stem) + 100 * ("waffles" in name)).save(place)
    return tmp_path


def test_torchvisions_sets_by_train_or_split(mnist, food):
    digits = torchvision_data(f"torchvision:MNIST:{mnist}")
    assert digits.classes[:2] == ("0 - zero", "1 - one")
    assert (len(digits.train) + len(digits.val), len(digits.test)) == (40, 10)
    assert digits.train.load(0, Preprocessing(28)).shape == (3, 28, 28)
    dishes = torchvision_data(f"torchvision:Food101:{food}")
    assert dishes.classes == ("apple_pie", "waffles")
    assert (len(dishes.train) + len(dishes.val), len(dishes.test)) == (40, 20)


def test_sets_that_torchvision_or_the_folder_does_not_have(tmp_path):
    with pytest.raises(DataError, match=r"no 'CIFAR1'.*did you mean.*'CIFAR10'"):
        torchvision_data("torchvision:CIFAR1")
    with pytest.raises(DataError, match="no 'LSUN'"):  # it would unpickle files
        torchvision_data(f"torchvision:LSUN:{tmp_path}")
    for name in ("CIFAR10", "Food101", "Flowers102"):
        with pytest.raises(DataError, match=f"{name}.*download=True") as caught:
            torchvision_data(f"torchvision:{name}:{tmp_path}")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"torchvision:EMNIST.*no split train"):
        torchvision_data(f"torchvision:EMNIST:{tmp_path}")
