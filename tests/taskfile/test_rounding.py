"""Heads of five bits or a byte per weight, and normalisation of two bytes: rounded once, kept to the bit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as safetensors_load
from torch import nn

from golden import tasks as golden
from piggyback.errors import TaskFileError
from piggyback.model.multitask import MultiTaskModel
from piggyback.taskfile.file import load, save
from piggyback.taskfile.rounding import (
    BYTE,
    PACKED,
    codes_to_rows,
    pack_codes,
    round_half,
    round_rows,
    rows_to_codes,
    to_half,
    unpack_codes,
)
from support.nets import Convolutions, learn, seeded
from taskfile.test_file import rebuilt, renamed

GOLDEN = Path(__file__).parent.parent / "golden"


def twin(row: list[float], largest: int) -> list[float]:
    """One row rounded number by number, in float64."""
    tries = []
    for clip in (1.0, 0.9, 0.8, 0.7, 0.6) if largest == PACKED else (1.0,):
        mantissa, exponent = math.frexp(clip * max(map(abs, row), default=0.0) / largest)
        scale = math.ldexp(math.ceil(mantissa * 2**16) / 2**16, exponent)
        codes = [max(-largest, min(largest, round(x / scale))) if scale else 0 for x in row]
        tries.append([code * scale for code in codes])
    return min(tries, key=lambda made: sum((m - x) ** 2 for m, x in zip(made, row, strict=True)))


@pytest.mark.parametrize("shape", [(10, 64), (3, 5, 1, 1), (1, 1), (4, 0)])
@pytest.mark.parametrize("size", [1.0, 1e-6, 3e8])
@pytest.mark.parametrize("largest", [PACKED, BYTE])
def test_rows_are_rounded_as_their_twin_says_and_come_back_to_the_bit(shape, size, largest):
    torch.manual_seed(0)
    weight = torch.randn(shape) * size
    rounded = round_rows(weight, largest)
    expected = [twin(row.tolist(), largest) for row in weight.flatten(1)]
    assert rounded.flatten(1).tolist() == expected
    assert torch.equal(round_rows(rounded, largest), rounded)
    if weight.numel():
        codes, scales = rows_to_codes(rounded)
        assert codes.dtype == torch.int8
        assert codes.shape == shape
        assert codes.abs().amax() == largest
        same = codes_to_rows(codes, scales)
        assert torch.equal(same.view(torch.int32), rounded.view(torch.int32))


def test_codes_of_five_bits_are_packed_as_their_twin_says():
    codes = torch.randint(-15, 16, (3, 16, 1, 1), generator=torch.Generator().manual_seed(0))
    packed = pack_codes(codes.to(torch.int8))
    assert tuple(packed.shape) == (3, 10, 1, 1)
    for row, octets in zip(codes.flatten(1).tolist(), packed.flatten(1).tolist(), strict=True):
        bits = "".join(f"{code + 15:05b}"[::-1] for code in row)
        assert octets == [int(bits[i : i + 8][::-1], 2) for i in range(0, 80, 8)]
    assert torch.equal(unpack_codes(packed), codes.to(torch.int8))
    # A byte each: codes beyond five bits, and rows or kernels that would leave bits over.
    assert pack_codes(torch.full((2, 8), 16, dtype=torch.int8)) is None
    assert pack_codes(torch.zeros(2, 12, dtype=torch.int8)) is None
    assert pack_codes(torch.zeros(2, 8, 3, 3, dtype=torch.int8)) is None


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(3, 4).double(),
        torch.randn(3, 4).bfloat16(),
        torch.randn(5),
        torch.tensor([[1.0, math.nan]]),
        torch.tensor([[1.0, math.inf]]),
        torch.tensor([[1e-40, 2e-40]]),
    ],
    ids=["double", "bfloat16", "one dimension", "nan", "inf", "denormal"],
)
def test_what_cannot_be_rounded_stays(weight):
    same = round_rows(weight)
    assert same.dtype == weight.dtype
    assert torch.equal(same.nan_to_num(), weight.nan_to_num())
    assert rows_to_codes(same) is None


def test_values_that_rounding_did_not_make_are_not_taken_for_it():
    torch.manual_seed(0)
    rounded = round_rows(torch.randn(4, 20))
    for spoil in (
        lambda w: w[0].add_(1e-6),
        lambda w: w[1, 3].copy_(torch.tensor(-0.0)),
        lambda w: w.zero_(),
    ):
        spoiled = rounded.clone()
        spoil(spoiled)
        assert rows_to_codes(spoiled) is None


def test_normalisation_is_rounded_where_float16_is_good_enough():
    fine = torch.tensor([1.2345, -3.3e-3, 100.0])
    assert to_half(round_half(fine)) is not None
    torch.testing.assert_close(round_half(fine), fine, rtol=2**-10, atol=0)
    for bad in (torch.tensor([1.0, 1e-7]), torch.tensor([1e5]), torch.tensor([math.inf])):
        assert torch.equal(round_half(bad), bad)
        assert to_half(bad) is None
    counter = torch.tensor(3)
    assert round_half(counter) is counter


@pytest.mark.parametrize("norm", ["frozen", "affine", "trained"])
def test_a_task_answers_the_same_before_saving_and_after_loading(norm, tmp_path):
    model = MultiTaskModel(seeded(Convolutions))
    x = torch.randn(4, 3, 8, 8)
    learn(model, "a", x, norm=norm)
    before = model(x, task="a")
    model.save_task("a", tmp_path / "a.safetensors")
    other = MultiTaskModel(seeded(Convolutions)).eval()
    other.load_task(tmp_path / "a.safetensors")
    assert torch.equal(other(x, task="a"), before)
    stored = safetensors_load((tmp_path / "a.safetensors").read_bytes())
    assert stored["head.weight"].dtype == torch.int8
    assert any(name.startswith("half.") for name in stored) == (norm != "frozen")


def test_a_custom_head_is_left_alone():
    model = MultiTaskModel(seeded(Convolutions))
    head = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    kept = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    model.start_task("a", 3, head=head)
    task = model.finish_task()
    for name, tensor in kept.items():
        assert torch.equal(task.head[name], tensor)
    assert "scale." not in str(safetensors_load(save(task)).keys())


def test_the_golden_file_loads_for_ever():
    data = (GOLDEN / "v3-short.safetensors").read_bytes()
    found = load(data)
    assert found.head["weight"].tolist() == golden.rows(golden.SCALES_3, golden.CODES_3)
    assert found.norm["bn.running_mean"].tolist() == [0.5, -1.25, 3.0]
    assert found.norm["bn.running_mean"].dtype == torch.float32
    torch.testing.assert_close(found.norm["bn.running_var"], torch.tensor([0.1, 1e-9, 7.0]))
    assert save(found) == data == save(golden.task_3())
    stored = safetensors_load(data)
    assert stored["head.weight"].dtype == torch.int8
    assert stored["half.bn.running_mean"].dtype == torch.float16
    assert stored["norm.bn.running_var"].dtype == torch.float32


def test_the_golden_file_with_a_packed_head_loads_for_ever():
    data = (GOLDEN / "v5-packed.safetensors").read_bytes()
    found = load(data)
    assert found.head["weight"].tolist() == golden.rows(golden.SCALES_5, golden.CODES_5)
    assert save(found) == data == save(golden.task_5())
    stored = safetensors_load(data)["head.weight"]
    assert (stored.dtype, tuple(stored.shape)) == (torch.uint8, (2, 5))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda h, t: h["__metadata__"].update(version="4"), id="in version 4"),
        pytest.param(
            lambda h, t: h["head.weight"].update(shape=[1, 10]), id="rows without a scale"
        ),
        pytest.param(lambda h, t: h["head.weight"].update(shape=[2, 1, 5]), id="five in a kernel"),
        pytest.param(lambda h, t: h["head.weight"].update(dtype="F16"), id="no codes"),
    ],
)
def test_packed_heads_that_do_not_fit_are_refused(spoil):
    with pytest.raises(TaskFileError):
        load(rebuilt((GOLDEN / "v5-packed.safetensors").read_bytes(), spoil))


def test_a_code_that_none_packs_is_refused():
    genuine = (GOLDEN / "v5-packed.safetensors").read_bytes()
    codes = torch.tensor(golden.CODES_5, dtype=torch.int8)
    packed = pack_codes(codes).numpy().tobytes()
    assert genuine.count(packed) == 1
    spoiled = bytes([packed[0] | 0b11111]) + packed[1:]
    with pytest.raises(TaskFileError, match="codes"):
        load(rebuilt(genuine.replace(packed, spoiled), lambda h, t: None))


@pytest.mark.parametrize(
    ("kind", "outputs", "largest"),
    [("classification", 16, PACKED), ("classification", 15, BYTE), ("regression", 16, BYTE)],
)
def test_many_scores_have_five_bits_and_numbers_a_byte(kind, outputs, largest):
    model = MultiTaskModel(seeded(Convolutions))
    model.start_task("a", outputs, kind=kind)
    codes, _ = rows_to_codes(model.finish_task().head["weight"])
    assert codes.abs().amax() == largest


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda h, t: renamed(h, "scale.weight", "scale.bias"), id="of another tensor"),
        pytest.param(lambda h, t: renamed(h, "scale.weight", "scale.gone"), id="of none"),
        pytest.param(lambda h, t: h["scale.weight"].update(shape=[1, 3]), id="of another shape"),
        pytest.param(lambda h, t: h["scale.weight"].update(dtype="I32"), id="of another dtype"),
        pytest.param(lambda h, t: h["half.bn.running_mean"].update(dtype="BF16"), id="BF16"),
        pytest.param(
            lambda h, t: renamed(h, "half.bn.running_mean", "half.bn.running_var"), id="and whole"
        ),
        pytest.param(lambda h, t: h["__metadata__"].update(version="2"), id="in version 2"),
    ],
)
def test_short_tensors_that_do_not_fit_are_refused(spoil):
    with pytest.raises(TaskFileError):
        load(rebuilt((GOLDEN / "v3-short.safetensors").read_bytes(), spoil))


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_scales_that_are_none_are_refused(bad):
    genuine = (GOLDEN / "v3-short.safetensors").read_bytes()
    good = torch.tensor(golden.SCALES_3).numpy().tobytes()
    values = torch.tensor([bad, *golden.SCALES_3[1:]]).numpy().tobytes()
    assert genuine.count(good) == 1
    with pytest.raises(TaskFileError, match="scales"):
        load(rebuilt(genuine.replace(good, values), lambda h, t: None))
