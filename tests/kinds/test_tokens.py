"""Tags of words: how spans are counted, how tags meet tokens, and what is wrong with a table."""

from __future__ import annotations

import json
import random
import time

import pytest
import torch

from piggyback.errors import DataError, InputError
from piggyback.kinds import kind_of
from piggyback.kinds.tokens import spans_of
from piggyback.taskfile.task import TaskInfo
from piggyback.texts.words import words_of
from piggyback.train.data.table import load_table
from piggyback.train.data.tagged import IGNORED, TaggedSet
from piggyback.zoo.load import load_backbone
from support.text_toys import encoder, tagged  # noqa: F401

TAGS = ("O", "B-x", "I-x", "B-y", "I-y")


def begins(before: str, tag: str) -> bool:
    """The twin's rule: a span begins at a B, and at an I that does not go on with what was before."""
    return tag[0] == "B" or (tag[0] == "I" and (before == "O" or before[2:] != tag[2:]))


def ends(tag: str, after: str) -> bool:
    return tag != "O" and (after == "O" or begins(tag, after))


def twin(tags: list[str]) -> set[tuple[int, int, str]]:
    padded = ["O", *tags, "O"]
    starts = [i for i in range(1, len(tags) + 1) if begins(padded[i - 1], padded[i])]
    stops = [i + 1 for i in range(1, len(tags) + 1) if ends(padded[i], padded[i + 1])]
    return {(a - 1, b - 1, padded[a][2:]) for a, b in zip(starts, stops, strict=True)}


def drawn(n: int, seed: int) -> list[list[str]]:
    source = random.Random(seed)
    return [source.choices(TAGS, k=source.randint(1, 9)) for _ in range(n)]


def test_spans_are_those_of_a_readable_twin():
    for tags in drawn(500, 1):
        found = spans_of(tags)
        assert set(found) == twin(tags)
        assert len(found) == len(twin(tags))
    assert spans_of(["PERSON", "I-RSON", "B", "I", "O"]) == [(1, 2, "RSON")]


def test_the_score_is_counted_over_all_texts_and_ignored_tokens_are_none():
    kind = kind_of(TaskInfo("tokens", TAGS))
    truth, called = drawn(60, 2), drawn(60, 3)
    called = [(found + ["O"] * 9)[: len(there)] for there, found in zip(truth, called, strict=True)]
    meter = kind.meter(torch.device("cpu"))
    for start in range(0, 60, 7):
        part = range(start, min(start + 7, 60))
        outputs = torch.randn(len(part), 20, len(TAGS))
        targets = torch.full((len(part), 20), IGNORED)
        for row, i in enumerate(part):
            for at, (tag, found) in enumerate(zip(truth[i], called[i], strict=True)):
                targets[row, 1 + 2 * at] = TAGS.index(tag)  # every other token is within a word
                outputs[row, 1 + 2 * at, TAGS.index(found)] = 9
        meter.add(kind.outputs(outputs, targets), targets)
    score = meter.end(lambda total: total, lambda rows: rows)

    there = {(i, *span) for i, tags in enumerate(truth) for span in twin(tags)}
    found = {(i, *span) for i, tags in enumerate(called) for span in twin(tags)}
    precision, recall = len(there & found) / len(found), len(there & found) / len(there)
    words = [
        a == b
        for one, two in zip(truth, called, strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    assert score.numbers() == pytest.approx(
        {
            "f1": 100 * 2 * precision * recall / (precision + recall),
            "precision": 100 * precision,
            "recall": 100 * recall,
            "token_accuracy": 100 * sum(words) / len(words),
        }
    )
    of_x = [{span for span in spans if span[3] == "x"} for spans in (there, found)]
    row = score.by_class()[1]["x"]
    assert row[0] == len(of_x[0])
    assert row[2] == pytest.approx(100 * len(of_x[0] & of_x[1]) / len(of_x[0]))
    assert score.count == len(there)


def test_words_of_any_text_and_of_a_million_letters_at_once():
    text = '(He saw "Les Misérables", in St-Denis.)  @user :-)'
    found = [text[a:b] for a, b in words_of(text)]
    assert found == [
        *("(", "He", "saw", '"', "Les", "Misérables", '",', "in", "St-Denis", ".)", "@user", ":-)")
    ]
    began = time.perf_counter()
    assert len(words_of("(" * 500_000 + "a" + "!" * 500_000)) == 3
    assert time.perf_counter() - began < 60


def test_a_words_tag_is_its_first_tokens(encoder, tagged):  # noqa: F811
    reader = load_backbone(f"transformers:{encoder}").preprocessing
    texts = ("the film very is good.", "a book")
    labels = torch.tensor([0, 1, 2, 0, 0, 0, 3])
    made = TaggedSet(TAGS, labels, texts).in_memory(reader)
    both = torch.tensor([1, 0])
    assert made.batch(both).shape == (2, 8)  # [CLS], 5 words, the stop, [SEP]
    wanted = [
        [IGNORED, 0, 3, *[IGNORED] * 5],
        [IGNORED, 0, 1, 2, 0, 0, IGNORED, IGNORED],
    ]
    assert made.targets(both, reader).tolist() == wanted
    assert made.subset(both).targets(torch.tensor([0, 1]), reader).tolist() == wanted
    assert made.subset(both).labels.tolist() == [0, 3, 0, 1, 2, 0, 0]
    short = TaggedSet(TAGS, labels, texts).in_memory(
        type(reader)(reader.tokenizer, 4, reader.pad, reader.family, reader.reader)
    )
    assert short.targets(torch.tensor([0]), reader).tolist() == [[IGNORED, 0, 1, IGNORED]]
    with pytest.raises(DataError, match="7"):
        TaggedSet(TAGS, labels[:6], texts)


# -- tables ----------------------------------------------------------------------------------------


def test_tables_of_lists_are_those_of_spaces(tagged, tmp_path):  # noqa: F811
    plain = load_table(tagged, "t", kind="tokens")
    assert plain.classes == ("O", "B-book", "I-book", "B-film", "I-film")
    assert plain.kind == "tokens"
    rows = [line.split("\t") for line in tagged.read_text().splitlines()[1:]]
    place = tmp_path / "tagged.jsonl"
    lines = [
        {"text": text.split(), "label": tags.split(), "split": part} for text, tags, part in rows
    ]
    place.write_text("\n".join(map(json.dumps, lines)))
    listed = load_table(place, "t", kind="tokens")
    assert listed.describe() == plain.describe()


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (["the film\tO B-x", "a book is\tO B-x"], "row 2: 2 tags for 3 words"),
        (["the film\tO B-x", "a book\tO X"], "row 2.*'X'.*B-TYPE"),
        (["the film\tO B-x", "a book\tO B-"], "row 2.*'B-'"),
        (["the film\tO B-x\ttrain", "a book\tO B-y\ttest"], "row 2.*'y' is in test"),
        (["a\tO\ttrain", "the\tO\tval", "it\tO\ttest"], "expected 2 or more"),
    ],
)
def test_bad_rows_are_named_before_training(rows, wanted, tmp_path):
    place = tmp_path / "bad.tsv"
    split = "\tsplit" * (rows[0].count("\t") == 2)
    place.write_text("\n".join([f"text\tlabel{split}", *rows]))
    with pytest.raises(DataError, match=wanted):
        load_table(place, "bad", kind="tokens")


def test_tags_of_images_and_of_two_columns_are_refused(tmp_path):
    place = tmp_path / "images.csv"
    place.write_text("image,label\na.png,O\n")
    with pytest.raises(DataError, match=r"images.*tokens"):
        load_table(place, kind="tokens")
    place.write_text("text,a,b\nfilm,O,O\n")
    with pytest.raises(DataError, match="2 columns"):
        load_table(place, columns={"label": "a,b"}, kind="tokens")


def test_a_network_that_pools_is_refused(tagged, tmp_path, recipe):  # noqa: F811
    from piggyback.train import train
    from support.text_toys import write_encoder

    pooled = write_encoder(tmp_path / "pooled", kind="BertForSequenceClassification")
    data = load_table(tagged, "t", kind="tokens")
    for method in ("masks", "finetune"):
        with pytest.raises(InputError, match="minilm_l6"):
            train(load_backbone(f"transformers:{pooled}"), data, "t", recipe(method, epochs=1))
    with pytest.raises(InputError, match="texts"):
        train(load_backbone("timm:resnet18", pretrained=False), data, "t", recipe(epochs=1))
