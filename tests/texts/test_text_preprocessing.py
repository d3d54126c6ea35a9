"""Texts to tokens: what a tokenizer is told apart by, cutting, padding, and what is no text."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from golden import tasks as golden
from piggyback.errors import BackboneMismatchError, DataError, InputError, TaskFileError
from piggyback.taskfile.file import load, save
from piggyback.taskfile.header import from_metadata, header_of, to_metadata
from piggyback.taskfile.task import Task, TaskInfo
from piggyback.texts.preprocessing import TextPreprocessing
from piggyback.zoo.load import load_backbone
from support.text_toys import WORDS, encoder, write_encoder  # noqa: F401
from taskfile.test_file import rebuilt


@pytest.fixture
def prepared(encoder):  # noqa: F811
    return load_backbone(f"transformers:{encoder}").preprocessing


def test_a_text_becomes_tokens_and_a_batch_is_padded(prepared):
    assert prepared("the film is good").tolist() == [2, 6, 12, 7, 8, 3]
    batch = prepared.batch(["good", "the film is good"])
    assert batch.dtype == torch.int64
    assert batch.tolist() == [[2, 8, 3, 0, 0, 0], [2, 6, 12, 7, 8, 3]]


def test_a_long_text_keeps_its_end_marks(prepared):
    short = replace(prepared, max_length=5)
    assert short("the film is very good").tolist() == [2, 6, 12, 7, 3]
    rows, cut = prepared.reader.encode(["good", "the film is very good"], 5)
    assert ([len(row) for row in rows], cut) == ([3, 5], 1)


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        *((InputError, wrong) for wrong in (3, None, b"good")),
        *((DataError, wrong) for wrong in ("", "  \n", "a" * 2_000_000, "\ud83d")),
    ],
)
def test_what_is_no_text_is_refused(prepared, error, wrong):
    with pytest.raises(error, match="text"):
        prepared(wrong)


def test_a_tokenizer_is_known_by_what_it_does(tmp_path, prepared):
    saved = tmp_path / "again"
    prepared.reader.inner.save_pretrained(saved)
    transformers = pytest.importorskip("transformers")
    again = transformers.AutoTokenizer.from_pretrained(saved)
    assert type(prepared.reader)(again, "x").digest() == prepared.tokenizer

    swapped = (*WORDS[:8], WORDS[9], WORDS[8], *WORDS[10:])
    other = load_backbone(f"transformers:{write_encoder(tmp_path / 'other', swapped)}")
    assert other.preprocessing.tokenizer != prepared.tokenizer
    with pytest.raises(BackboneMismatchError, match="tokenizer"):
        prepared.bound(other.preprocessing, "mood")


def test_copies_read_the_same(prepared):
    for twin in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert twin == prepared
        assert twin("good").tolist() == [2, 8, 3]


def test_the_file_carries_the_tokenizers_digest_and_no_tokenizer(prepared):
    info = TaskInfo(classes=("a", "b"), preprocessing=prepared)
    data = save(Task("mood", {}, {}, info=info))
    assert header_of(data).version == 4
    found = load(data).info.preprocessing
    assert found == prepared
    assert found.reader is None
    with pytest.raises(InputError, match="tokenizer"):
        found("good")
    assert header_of(save(Task("mood", {}, {}, info=TaskInfo()))).version == 1


@pytest.mark.parametrize(
    "change",
    [
        ('"max_length":24', '"max_length":0'),
        ('"max_length":24', '"max_length":true'),
        ('"pad":0', '"pad":-1'),
        ('"pad":0', '"pad":0,"more":1'),
        ('"tokenizer":"', '"tokenizer":"x'),
        ('"family":"bert"', '"family":3'),
    ],
)
def test_a_damaged_description_is_refused(prepared, change):
    metadata = to_metadata("mood", TaskInfo(preprocessing=prepared), ())
    assert change[0] in metadata["task"]
    metadata["task"] = metadata["task"].replace(*change)
    with pytest.raises(TaskFileError, match="damaged"):
        from_metadata(metadata)


@pytest.mark.parametrize("version", ["3", "4"])
def test_version_4_is_for_texts_alone(prepared, version):
    info = TaskInfo(preprocessing=prepared if version == "3" else None)
    norm = {"norm.weight": torch.ones(2)}  # in float16: of version 3
    data = save(Task("mood", {}, {}, norm, info))
    with pytest.raises(TaskFileError, match=f"version {version}: expected"):
        load(rebuilt(data, lambda h, t: h["__metadata__"].update(version=version)))


def test_a_digest_is_a_sha256():
    with pytest.raises(InputError, match="SHA-256"):
        TextPreprocessing("abc")


def test_the_golden_file_loads_for_ever():
    data = Path(golden.__file__).with_name("v4-text.safetensors").read_bytes()
    found = load(data)
    assert found.info.preprocessing == TextPreprocessing("ef" * 32, 96, 1, "roberta")
    assert {name: mask.kept for name, mask in found.masks.items()} == {
        "query.weight": 19,
        "dense.weight": 19,
    }
    assert save(found) == data == save(golden.task_4())
