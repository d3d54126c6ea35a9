"""Balanced sampling, given weights, mixup, CutMix, a loss of one's own: what they do, and that a resume repeats it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from piggyback.errors import InputError
from piggyback.images.label_maps import SegmentationSet
from piggyback.images.preprocessing import Preprocessing
from piggyback.kinds import kind_of
from piggyback.kinds.base import Loss
from piggyback.taskfile.task import TaskInfo
from piggyback.texts.preprocessing import TextPreprocessing
from piggyback.train import Augment, ImageData, from_tensors, train
from piggyback.train.data.batches import TrainBatches
from piggyback.train.data.tagged import TaggedSet
from piggyback.train.data.text import TextSet
from piggyback.train.hashing import balanced
from piggyback.train.mixing import Mix, mix_of
from support.training_toys import Recorder, assert_same, interrupted


def skewed(common=180, rare=20):
    """Red and green images, many and few."""
    generator = torch.Generator().manual_seed(1)
    labels = (torch.arange(common + rare) >= common).long()
    images = (torch.rand(len(labels), 3, 16, 16, generator=generator) * 120).byte()
    images[torch.arange(len(labels)), labels] += 100
    return from_tensors("s", ["common", "rare"], (images, labels))


def half_squared(outputs, targets):
    return (outputs.softmax(1) - F.one_hot(targets, outputs.shape[1])).square().mean()


# -- what is drawn ---------------------------------------------------------------------------------


def test_balanced_epochs_have_each_class_equally_often_and_differ():
    labels = torch.tensor([0] * 90 + [1] * 8 + [3] * 2)
    order = balanced(0, 0, labels)
    assert labels[order % 100].bincount(minlength=4).tolist() == pytest.approx([33, 33, 0, 33], abs=1.1)  # fmt: skip
    assert len(set(order.tolist())) == 100  # a repeated image is augmented anew each time
    common = [set(order[order < 90].tolist()) for order in (order, balanced(0, 1, labels))]
    assert common[0] != common[1]
    assert torch.equal(order, balanced(0, 0, labels))


def test_balanced_batches_are_augmented_by_the_time_an_image_comes():
    data, view = skewed(), Preprocessing(16)
    made = TrainBatches(data.train, view, Augment(), batch_size=16, seed=0, epoch=0, sampling="balanced")  # fmt: skip
    counts = sum(made[i][1].bincount(minlength=2) for i in range(len(made)))
    assert abs(int(counts[0] - counts[1])) <= 16
    rare = data.train.labels.nonzero()[:, 0].tolist()
    again = (made.order % len(data.train) == rare[0]).nonzero()[:, 0].tolist()
    shown = [made[at // 16][0][at % 16] for at in again if at // 16 < len(made)]
    assert len(shown) > 2
    assert any(not torch.equal(shown[0], image) for image in shown)


def test_mixing_keeps_shares_and_follows_from_seed_and_step(recipe):
    both = recipe(mixup=0.4, cutmix=1.0)
    mixes = [mix_of(both, step) for step in range(400)]
    assert mixes == [mix_of(both, step) for step in range(400)]
    assert mixes[0] != mix_of(recipe(mixup=0.4, cutmix=1.0, seed=1), 0)
    assert 150 < sum(mix.centre is None for mix in mixes) < 250
    assert mix_of(recipe(), 3) == Mix()
    black_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    for mix in mixes[:60]:
        images, share = mix.images(black_white)
        assert float(images[1].float().mean()) == pytest.approx(255 * share, abs=1)
        assert torch.equal(images[0], 255 - images[1])


# -- training --------------------------------------------------------------------------------------

OPTIONS = {
    "balanced": {"sampling": "balanced"},
    "weights": {"class_weights": "rare=9"},
    "mixup": {"mixup": 0.4},
    "both": {"mixup": 0.4, "cutmix": 1.0, "sampling": "balanced", "accumulate": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_ends_in_the_same_bits(name, backbone, recipe, tmp_path):
    options, data = recipe(**OPTIONS[name]), skewed()
    resumed = interrupted(backbone, data, "a", options, tmp_path)
    whole = train(backbone, data, "a", options)
    assert_same(resumed.task, whole.task)
    plain = train(backbone, data, "a", recipe())
    assert not torch.equal(*[run.task.head["weight"] for run in (whole, plain)])


@pytest.mark.parametrize("name", ["both", "balanced"])
def test_masks_are_not_taken_for_collapsed(name, backbone, recipe):
    told = Recorder()
    options = {**OPTIONS[name], "accumulate": 1}
    result = train(backbone, skewed(), "a", recipe(epochs=12, mask_lr=None, **options), listener=told)  # fmt: skip
    assert not [line for line in told.notices if "collapsed" in line]
    assert result.accuracy > 90


def test_texts_are_sampled_by_class_and_still_go_by_length():
    labels = (torch.arange(200) % 10 == 0).long()
    tokens = tuple(np.arange(1 + i % 7, dtype=np.int32) for i in range(200))
    texts = TextSet(("common", "rare"), labels, ("text",) * 200, tokens=tokens)
    options = {"batch_size": 8, "seed": 0, "epoch": 0, "sampling": "balanced"}
    made = TrainBatches(texts, TextPreprocessing("0" * 64), Augment(), **options)
    assert labels[made.order].bincount().tolist() == [100, 100]
    spread = [len({len(tokens[i]) for i in part.tolist()}) for part in made.order.split(8)]
    assert sum(spread) / len(spread) < 3


def test_given_weights_are_relative_and_mean_one_over_the_images():
    kind = kind_of(TaskInfo(classes=("a", "b")))
    labels = torch.tensor([0, 0, 0, 1])
    weights = kind.scaled(torch.tensor([1.0, 5.0]), labels)
    assert weights.tolist() == pytest.approx([0.5, 2.5])
    assert float(weights[labels].mean()) == pytest.approx(1)


def test_a_loss_of_ones_own_trains_resumes_and_is_named(backbone, data, recipe, tmp_path):
    resumed = interrupted(backbone, data, "a", recipe(), tmp_path, loss=half_squared)
    assert_same(resumed.task, train(backbone, data, "a", recipe(), loss=half_squared).task)
    assert resumed.provenance["recipe"]["loss"].endswith(":half_squared")
    plain = train(backbone, data, "a", recipe(label_smoothing=0.0))
    same = train(backbone, data, "a", recipe(), loss=torch.nn.CrossEntropyLoss())
    assert_same(same.task, plain.task)


def test_the_mean_and_a_loss_for_each_sample_are_the_same():
    kind = kind_of(TaskInfo(classes=("a", "b", "c")))
    outputs, targets = torch.randn(6, 3), torch.arange(6) % 3
    found = [
        kind.training_losses(outputs, targets, Loss("own", function=torch.nn.CrossEntropyLoss(reduction=way)))
        for way in ("mean", "none")
    ]  # fmt: skip
    assert float(found[0]) == pytest.approx(float(found[1]))
    for wrong in (lambda o, t: o, lambda o, t: 1.0):
        with pytest.raises(InputError, match=r"loss own returned .*\(6,\)"):
            kind.training_losses(outputs, targets, Loss("own", function=wrong))


# -- what is refused -------------------------------------------------------------------------------


def of_kind(kind):
    images = torch.randint(0, 255, (12, 3, 16, 16), dtype=torch.uint8)
    if kind == "tokens":
        return ImageData("m", *[TaggedSet(("O", "B-x"), torch.tensor([0, 1, 1]), ("a b", "c"))] * 3)
    if kind == "segmentation":
        maps = (torch.arange(12 * 256) % 2).to(torch.uint8).view(12, 16, 16)
        return ImageData("m", *[SegmentationSet(("a", "b"), images, maps)] * 3)
    labels = {"multilabel": torch.rand(12, 2) < 0.5, "regression": torch.rand(12, 2)}[kind]
    return from_tensors("m", ["a", "b"], *[(images, labels)] * 3)


@pytest.mark.parametrize("kind", ["segmentation", "multilabel", "regression", "tokens"])
@pytest.mark.parametrize(
    "options",
    [{"sampling": "balanced"}, {"mixup": 0.2}, {"cutmix": 1.0}, {"abstain_at": "accuracy=0.9"}],
)
def test_other_kinds_are_refused(kind, options, backbone, recipe):
    (name,) = options
    with pytest.raises(InputError, match=f"{name} .* for a {kind} task"):
        train(backbone, of_kind(kind), "m", recipe(**options))


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ("rare=5,comon=1", r"no class 'comon'.*did you mean 'common'"),
        ("rare=x", "'rare=x': expected 'balanced', or"),
        ("rare=-1", "'rare=-1'"),
        ("rare=nan", "'rare=nan'"),
        ("rare=2,rare=3", "'rare=3'.*each once"),
        ("rare", "'rare'"),
        ("", "''"),
    ],
)
def test_weights_that_are_none_are_named(weights, wanted, backbone, recipe):
    with pytest.raises(InputError, match=f"class_weights.*{wanted}") as caught:
        train(backbone, skewed(), "s", recipe(class_weights=weights))
    assert "\n" not in str(caught.value)


def test_losses_that_cannot_be(backbone, data, recipe):
    for field, value in (("loss", "focal"), ("class_weights", "balanced")):
        with pytest.raises(InputError, match=f"{field} '{value}' beside a loss of your own"):
            train(backbone, data, "a", recipe(**{field: value}), loss=half_squared)
    with pytest.raises(InputError, match="expected a function"):
        train(backbone, data, "a", recipe(), loss="focal")
