"""Segmentation from end to end: augmentation, the score, training by every method, files, label maps."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from piggyback import MultiTaskModel
from piggyback.errors import DataError, InputError
from piggyback.images.label_maps import VOID, SegmentationSet
from piggyback.images.map_pictures import as_png, palette
from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.train import Augment, ImageData, Recipe, evaluate, predict, train
from piggyback.train.data.batches import EvalBatches, TrainBatches, augment, augment_map, draws
from piggyback.train.evaluation import measure, segment
from piggyback.train.tune import TUNE
from piggyback.zoo.segmentation import segmentation_of
from support.map_tasks import build
from support.training_toys import assert_same, interrupted

CLASSES = ("red", "green", "blue")


@pytest.fixture
def network() -> Backbone:
    return build()


@pytest.fixture
def patches() -> ImageData:
    """60 images of 16 x 16, in four quarters of one colour each under noise; some pixels are void."""
    generator = torch.Generator().manual_seed(1)
    quarters = torch.randint(0, 3, (60, 2, 2), generator=generator)
    maps = quarters.repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = torch.rand(60, 3, 16, 16, generator=generator) * 100
    images.scatter_add_(1, maps[:, None], torch.full((60, 1, 16, 16), 120.0))
    labels = maps.byte()
    labels[:, 7:9] = VOID
    whole = SegmentationSet(CLASSES, images.byte(), labels)
    parts = (torch.arange(0, 40), torch.arange(40, 48), torch.arange(48, 60))
    return ImageData("patches", *(whole.subset(part) for part in parts))


@pytest.fixture
def recipe(recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    settings = {"epochs": 4, "batch_size": 8, "head_lr": 3e-2, "finetune_lr": 1e-2}

    def make(method: str = "masks", **options: object) -> Recipe:
        return recipe(method, **{**settings, "label_smoothing": 0.0, **options})

    return make


@pytest.fixture
def model(network: Backbone, patches: ImageData, recipe: Callable[..., Recipe], tmp_path: Path):
    """Holds the task patches, learned for six epochs, from its file."""
    result = train(network, patches, "patches", recipe(epochs=6), tmp_path)
    held = MultiTaskModel(network)
    held.load_task(tmp_path / "patches.safetensors")
    return held, result


def twin(
    truth: np.ndarray, predicted: np.ndarray, classes: int
) -> tuple[list[float | None], float]:
    """IoU of each class, pixel by pixel, as one would write it down; percent."""
    ious: list[float | None] = []
    for label in range(classes):
        both = either = 0
        for t, p in zip(truth.flatten(), predicted.flatten(), strict=True):
            if t == VOID:
                continue
            both += t == label and p == label
            either += t == label or p == label
        ious.append(100 * both / either if either else None)
    known = [iou for iou in ious if iou is not None]
    return ious, sum(known) / len(known)


class Fixed(nn.Module):
    """Answers with logits that were given, batch after batch."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.at = logits, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.at += len(x)
        return self.logits[self.at - len(x) : self.at]


def test_mean_iou_is_its_readable_twin_with_void_left_out():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (5, 6, 6), generator=generator).byte()  # of 0 to 3, of five classes
    truth[torch.rand(5, 6, 6, generator=generator) < 0.2] = VOID
    logits = torch.randn(5, 5, 6, 6, generator=generator)
    logits[:, 4] = -9  # never in truth, never predicted
    logits[:, 3] = torch.where(truth == VOID, 9.0, -9.0)  # predicted on void pixels only
    images = SegmentationSet(tuple("abcde"), torch.zeros(5, 3, 6, 6, dtype=torch.uint8), truth)
    found = measure(
        Fixed(logits), images, Preprocessing(6), device=torch.device("cpu"), batch_size=2
    )
    ious, mean = twin(truth.numpy(), logits.argmax(1).numpy(), 5)
    assert list(found.per_class_iou().values()) == pytest.approx(ious)
    assert ious[3] == 0
    assert ious[4] is None
    assert found.mean_iou == pytest.approx(mean)
    assert found.accuracy == found.mean_iou
    assert found.count == int((truth != VOID).sum())
    keep = truth != VOID
    right = (logits.argmax(1) == truth)[keep].float().mean()
    assert found.right == pytest.approx(100 * float(right))
    losses = -logits.log_softmax(1).gather(1, truth.long().clamp_max(4)[:, None])[:, 0][keep]
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize(
    "options", [Augment(shift=0.3), Augment(flip=True), Augment(crop=0.3, flip=True)]
)
def test_images_and_label_maps_move_together(options):
    # Each pixel's class is its brightness, so that the two can be compared after any move.
    labels = torch.kron(torch.arange(16).view(4, 4), torch.ones(5, 5, dtype=torch.long)).byte()
    image = (labels * 10)[None].expand(3, -1, -1).contiguous()
    agree = []
    moved = 0
    for chances in draws(0, 1, np.arange(20)):
        x = augment(image, options, 20, chances)[0]
        y = augment_map(labels, options, 20, chances)
        assert y.shape == x.shape == (20, 20)
        agree.append(float(((x.float() / 10).round() == y).float().mean()))
        moved += not torch.equal(y, labels)
    assert moved > 5
    # A crop is resized, which mixes the image's pixels at the edges of the blocks.
    assert min(agree) == 1.0 if options.crop == 1 else sum(agree) / len(agree) > 0.7


def test_label_maps_hold_classes_only_after_augmentation(patches):
    def batch(**share):
        options, view = Augment(shift=0.2, flip=True, crop=0.4), Preprocessing(16)
        place = {"batch_size": 16, "seed": 0, "epoch": 0, **share}
        return TrainBatches(patches.train, view, options, **place)[0]

    images, labels = batch()
    assert images.shape == (16, 3, 16, 16)
    assert labels.shape == (16, 16, 16)
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) <= {0, 1, 2, VOID}
    ranks = [batch(rank=rank, world=2)[1] for rank in range(2)]
    assert torch.equal(torch.stack(ranks, 1).flatten(0, 1), labels)


def test_a_plain_border_is_refused_with_label_maps(network, patches, recipe):
    with pytest.raises(InputError, match=r"augment\.border"):
        train(network, patches, "a", recipe(augment=Augment(border="plain")))


def test_an_empty_share_of_the_last_batch(patches):
    batches = EvalBatches(patches.val, Preprocessing(16), batch_size=7, rank=1, world=2)
    images, labels = batches[1]
    assert images.shape == (0, 3, 16, 16)
    assert labels.shape == (0, 16, 16)


@pytest.mark.parametrize("method", ["masks", "head", "finetune"])
def test_every_method_learns_and_says_mean_iou(method, network, patches, recipe):
    before = {name: t.clone() for name, t in network.module.state_dict().items()}
    result = train(network, patches, "patches", recipe(method))
    assert result.accuracy > 60  # three classes: chance is below 30
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert result.history[-1].val_accuracy == pytest.approx(result.val_accuracy, abs=15)
    after = network.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    if method == "finetune":
        assert result.state is not None
        assert result.state["head.score.0.bias"].shape == (3,)
    else:
        assert result.task is not None
        assert result.task.info.kind == "segmentation"
        assert (result.task.density < 1) == (method == "masks")


def test_settings_are_chosen_for_label_maps_too(network, patches, recipe, tmp_path):
    result = train(network, patches, "patches", recipe(epochs=1, tune=True), tmp_path)
    tried = json.loads((tmp_path / TUNE).read_text())
    assert len(tried["tried"]) == 5
    assert result.accuracy > 0


def test_a_task_is_measured_from_its_file_as_in_training(model, patches):
    held, result = model
    measured = evaluate(held, "patches", patches.test)
    assert measured.kind == "segmentation"
    assert measured.accuracy == pytest.approx(result.accuracy)
    assert set(measured.per_class_iou()) == set(CLASSES)
    with pytest.raises(InputError, match="of kind 'segmentation': expected classification"):
        predict(held, "patches", [result.path.parent])
    other = replace(patches.test, classes=("red", "green", "grey"))
    with pytest.raises(DataError, match="missing 'blue'; unexpected 'grey'"):
        evaluate(held, "patches", other)


def test_a_run_goes_on_where_it_was_stopped(network, patches, tmp_path, recipe):
    whole = train(network, patches, "patches", recipe("head"))
    resumed = interrupted(network, patches, "patches", recipe("head"), tmp_path)
    assert resumed.accuracy == whole.accuracy
    assert_same(resumed.task, whole.task)


def test_pieces_of_a_batch_give_the_whole_batch_s_gradient(network, patches, recipe):
    # Void is spread unevenly over the pieces, so that means of means would differ.
    uneven = patches.train.maps.clone()
    uneven[::2, :12] = VOID
    data = replace(patches, train=replace(patches.train, maps=uneven))
    options = {"epochs": 1, "batch_size": 40, "augment": Augment(shift=0)}
    one = train(network, data, "patches", recipe("head", **options))
    four = train(network, data, "patches", recipe("head", accumulate=4, **options))
    assert one.task is not None
    assert four.task is not None
    for name, tensor in one.task.head.items():
        torch.testing.assert_close(four.task.head[name], tensor, rtol=1e-4, atol=1e-5)
    assert one.history[0].train_loss == pytest.approx(four.history[0].train_loss, rel=1e-5)


def test_the_loss_is_the_mean_over_counted_pixels(network, patches, recipe):
    # A head of zeros says 1/3 each, so that its bias has gradient 1/3 - share of the class.
    options = {"finetune_optimizer": "sgd", "finetune_lr": 0.1, "schedule": "constant"}
    once = recipe("finetune", epochs=1, batch_size=40, augment=Augment(shift=0), **options)
    result = train(network, patches, "patches", once)
    counted = torch.bincount(patches.train.maps.flatten(), minlength=256)[:3].double()
    expected = -0.1 * (1 / 3 - counted / counted.sum())
    assert result.state is not None
    bias = result.state["head.score.1.bias"].double()
    torch.testing.assert_close(bias, expected, rtol=1e-4, atol=1e-7)
    assert result.history[0].train_loss == pytest.approx(np.log(3), rel=1e-5)


def test_images_without_any_counted_pixel_do_no_harm(network, patches, recipe):
    void = torch.full_like(patches.train.maps, VOID)
    data = replace(patches, train=replace(patches.train, maps=void))
    result = train(network, data, "patches", recipe("head", epochs=1))
    assert result.history[0].train_loss == 0


def test_what_cannot_be_trained_on_label_maps_is_refused(network, backbone, patches, recipe):
    with pytest.raises(InputError, match="policy 'trivial' with label maps: expected 'none'"):
        train(network, patches, "patches", recipe(augment=Augment(policy="trivial")))
    with pytest.raises(InputError, match="take a backbone 'segmentation:NAME'"):
        train(backbone, patches, "patches", recipe())


def test_label_maps_at_the_images_own_size(model, patches, tmp_path):
    photo = torch.nn.functional.interpolate(patches.test.images[:1].float(), (40, 56))[0].byte()
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    (found,) = segment(model[0], "patches", [tmp_path / "photo.png"])
    truth = torch.nn.functional.interpolate(patches.test.maps[:1, None].float(), (40, 56))[0, 0]
    assert found.labels.shape == (40, 56)
    assert found.labels.dtype == torch.uint8
    counted = truth != VOID
    assert float((found.labels == truth)[counted].float().mean()) > 0.8
    assert sum(found.shares.values()) == pytest.approx(100)
    written = Image.open(io.BytesIO(as_png(found.labels, palette(3))))
    assert written.mode == "P"
    assert written.getpalette()[3:6] == [128, 0, 0]
    assert np.array_equal(np.array(written), found.labels.numpy())


def test_what_a_centre_crop_leaves_out_is_void(network, patches, tmp_path, recipe):
    train(network, patches, "patches", recipe("head", epochs=1, crop_pct=0.5), tmp_path)
    model = MultiTaskModel(network)
    model.load_task(tmp_path / "patches.safetensors")
    Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    (found,) = segment(model, "patches", [tmp_path / "photo.png"])
    inside = found.labels != VOID
    assert inside.sum() == 20 * 20
    assert inside[10:30, 20:40].all()


def test_a_pretrained_kind_of_network_trains_too(patches, recipe):
    torch.manual_seed(0)
    module = timm.create_model("test_efficientnet", pretrained=False)
    made = segmentation_of(
        Backbone(module, "timm:test_efficientnet", Preprocessing(32), "classifier")
    )
    result = train(made, patches, "patches", recipe(epochs=1, norm="affine", image_size=32))
    assert result.task is not None
    assert result.task.norm
    assert result.task.info.backbone.source == "segmentation:timm:test_efficientnet"
