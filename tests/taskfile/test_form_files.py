"""Task files of version 2: coefficients in them, damaged ones, and readers that know version 1 only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from golden import tasks as golden
from piggyback.errors import InputError, TaskFileError
from piggyback.masks.bits import unpack_mask
from piggyback.masks.rule import Form, MaskRule
from piggyback.taskfile.file import load, load_file, save, save_file
from piggyback.taskfile.header import read_header
from taskfile.test_file import rebuilt, renamed, same

GOLDEN = Path(__file__).parent.parent / "golden"
FORMS: tuple[Form, ...] = ("channel", "affine")
every_form = pytest.mark.parametrize("form", FORMS)


@every_form
def test_golden_files_load_for_ever(form: Form) -> None:
    data = (GOLDEN / f"v2-{form}.safetensors").read_bytes()
    found, ternary = load(data), form == "channel"
    for name, shape in golden.SHAPES_2.items():
        values = golden.values_2(name, ternary)
        assert unpack_mask(found.masks[name]).to(torch.int8).flatten().tolist() == values
        assert found.coefficients[name].dtype == torch.float32
        assert found.coefficients[name].tolist() == golden.coefficients(form, shape)
    assert found.info.rule == MaskRule("ternary" if ternary else "binary", 0.005, form)
    assert same(found, golden.task_2(form))
    assert save(found) == data


@every_form
def test_a_file_brings_coefficients_back_bit_for_bit(form: Form, tmp_path: Path) -> None:
    task = golden.task_2(form)
    odd = {n: torch.randn_like(k) * 1e-40 for n, k in task.coefficients.items()}  # subnormal too
    task = replace(task, coefficients=odd)
    save_file(task, tmp_path / "a")
    found = load_file(tmp_path / "a")
    assert same(found, task)
    assert list(found.coefficients) == sorted(odd)
    for name, numbers in odd.items():
        assert torch.equal(found.coefficients[name], numbers)


@every_form
def test_the_header_tells_version_form_and_bytes(form: Form, tmp_path: Path) -> None:
    task = golden.task_2(form)
    save_file(task, tmp_path / "a")
    found = read_header(tmp_path / "a")
    assert (found.version, found.info.rule.form) == (2, form)
    assert found.bytes_form == 4 * (3 * 4 if form == "affine" else 4 + 6 + 5)
    assert found.bytes_total == (tmp_path / "a").stat().st_size
    bits = 8 * (found.bytes_masks + found.bytes_form) / task.weights
    assert found.bits_per_weight == pytest.approx(bits)


DAMAGES: dict[str, tuple[Callable[..., object], str]] = {
    "form in version 1": (lambda h, t: h["__metadata__"].update(version="1"), "a mask rule"),
    "no form in version 2": (lambda h, t: t["rule"].pop("form"), "a mask rule"),
    "plain form in version 2": (lambda h, t: t["rule"].update(form="plain"), "version 2: expected 1"),
    "unknown form": (lambda h, t: t["rule"].update(form="rows"), "form 'rows'.*damaged"),
    "form no text": (lambda h, t: t["rule"].update(form=[]), "expected one of plain"),
    "ternary affine": (lambda h, t: t["rule"].update(kind="ternary"), "expected a binary one"),
    "another form": (lambda h, t: t["rule"].update(form="channel"), r"'block.depthwise.weight'.*\(6,\)"),
    "another weight": (lambda h, t: renamed(h, "form.fc.weight", "form.fd.weight"), "3.*'fc.weight'"),
    "called otherwise": (lambda h, t: renamed(h, "form.fc.weight", "norm.fc.weight"), "2.*'fc.weight'"),
    "without a name": (lambda h, t: renamed(h, "form.fc.weight", "form"), "'form' belongs to no part"),
    "integers": (lambda h, t: h["form.fc.weight"].update(dtype="I32"), r"I32 \(4,\): expected F32"),
    "another shape": (lambda h, t: h["form.fc.weight"].update(shape=[2, 2]), r"\(2, 2\): expected F32"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_files_are_refused(case: str) -> None:
    change, message = DAMAGES[case]
    with pytest.raises(TaskFileError, match=message):
        load(rebuilt((GOLDEN / "v2-affine.safetensors").read_bytes(), change))


@pytest.mark.parametrize(("form", "value"), [("affine", float("nan")), ("channel", float("inf"))])
def test_coefficients_that_are_not_finite_are_refused(form: Form, value: float) -> None:
    four = torch.tensor([value]).numpy().tobytes()  # tensors of float32 begin with the coefficients
    data = (GOLDEN / f"v2-{form}.safetensors").read_bytes()
    with pytest.raises(TaskFileError, match=r"not finite.*damaged"):
        load(rebuilt(data, body=lambda rest: rest[:12] + four + rest[16:]))


def test_coefficients_in_a_plain_file_are_refused() -> None:
    data = (GOLDEN / "v1-binary.safetensors").read_bytes()
    with pytest.raises(TaskFileError, match=r"form 'plain'.*'bias'"):
        load(rebuilt(data, lambda h, t: renamed(h, "head.bias", "form.bias")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: {n: v for n, v in k.items() if n != "fc.weight"}, "for 2 weights.*'fc.weight'"),
        (lambda k: {**k, "fc.weight": k["fc.weight"].half()}, "torch.float16"),
        (lambda k: {**k, "fc.weight": k["fc.weight"].view(2, 2)}, r"\(2, 2\): expected .* \(4,\)"),
        (lambda k: {**k, "fc.weight": k["fc.weight"] / 0}, "not finite"),
    ],
)
def test_what_would_be_refused_is_not_written(change: Any, message: str, tmp_path: Path) -> None:
    task = golden.task_2("affine")
    wrong = replace(task, coefficients=change(task.coefficients))
    with pytest.raises(InputError, match=message):
        save_file(wrong, tmp_path / "a")
    assert not list(tmp_path.iterdir())
