"""Tables of texts: what is read, and what is wrong with a table, by its row."""

from __future__ import annotations

import pytest

from piggyback.errors import DataError
from piggyback.train.data.text_table import load_text_table, read_texts, text_splits

GOOD = "".join(f"text {i} good,good\ntext {i} bad,bad\n" for i in range(20))


def write(folder, name, text, encoding="utf-8"):
    place = folder / name
    place.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return place


def test_csv_tsv_and_json_lines_read_the_same(tmp_path):
    rows = [('a , "b"', "x"), ("c", "y"), ("d", "x")] * 5
    quoted = "".join('"{}",{}\n'.format(text.replace('"', '""'), label) for text, label in rows)
    import json

    files = [
        write(tmp_path, "a.csv", "text,label\n" + quoted),
        write(tmp_path, "bom.csv", "\ufefftext,label\r\n" + quoted.replace("\n", "\r\n")),
        write(tmp_path, "a.tsv", "text\tlabel\n" + "".join(f"{t}\t{n}\n" for t, n in rows)),
        write(tmp_path, "a.jsonl", "".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows)),
    ]  # fmt: skip
    for file in files:
        found = text_splits(file)["train"]
        assert found.classes == ("x", "y")
        assert list(zip(found.texts, found.labels.tolist(), strict=True)) == [
            (t, "xy".index(n)) for t, n in rows
        ]


def test_columns_and_splits_go_by_name(tmp_path):
    lines = "q,mood,fold\n" + "".join(
        f"t{i},{'ab'[i % 2]},{('Train', 'dev', 'testing')[i % 3]}\n" for i in range(18)
    )
    columns = {"text": "q", "label": "mood", "split": "fold"}
    data = load_text_table(write(tmp_path, "a.csv", lines), "x", columns)
    assert {split: len(part) for split, part in data.splits().items()} == {
        "train": 6,
        "val": 6,
        "test": 6,
    }
    assert data.cut == ()


def test_splits_that_are_missing_are_cut_by_content(tmp_path):
    data = load_text_table(write(tmp_path, "a.csv", "text,label\n" + GOOD))
    assert sum(len(part) for part in data.splits().values()) == 40
    assert {each.split for each in data.cut} == {"val", "test"}
    again = load_text_table(write(tmp_path, "b.csv", "text,label\n" + GOOD))
    assert data.test.texts == again.test.texts


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.csv", "sentence,label\n" + GOOD, "no column 'text'.*'sentence'.*--column"),
        ("a.csv", "text,class\n" + GOOD, "no column 'label'.*'class'"),
        ("a.csv", "text,label\na,x\n,y\n", "row 2.*empty"),
        ("a.csv", "text,label\na,x\n  ,y\n", "row 2.*empty"),
        ("a.csv", "text,label\na,x\nb,\n", "row 2.*label ''"),
        ("a.csv", "text,label\na,x\nb,y,z\n", "row 2.*3 cells.*2"),
        ("a.csv", "text,label\na\n", "row 1.*1 cells"),
        ("a.csv", "text;label\na;x\n", "no column 'text'.*'text;label'"),
        ("a.csv", "text,text\na,x\n", "two columns 'text'"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.csv", "", "empty"),
        ("a.csv", 'text,label\n"a,x\n', "whole table"),
        ("a.csv", "text,label\nä,x\n".encode("latin-1"), "UTF-8"),
        ("a.csv", "text,label,split\na,x,train\nb,x,val\nc,x,test\n", "1 class"),
        (
            "a.csv",
            "text,label,split\na,x,train\nb,y,sometimes\n",
            "row 2.*'sometimes'.*train, val or test",
        ),
        ("a.csv", "text,label,split\na,x,test\nb,y,test\n", "expected one called train"),
        (
            "a.csv",
            "text,label,split\na,cat,train\nb,dog,train\nc,dgo,val\n",
            "'dgo' is in val.*did you mean 'dog'",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text": 5, "label": "y"}\n',
            "row 2: text 5: expected a text",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text": null, "label": "y"}\n',
            "row 2: text None",
        ),
        ("a.jsonl", '{"text": "a", "label": ["x"]}\n', "row 1: label"),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', "row 1: label 0.5"),
        ("a.jsonl", '["a", "x"]\n', "row 1.*an object"),
        ("a.jsonl", '{"text": "a"\n', "row 1: not JSON"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path, name, text, wanted):
    with pytest.raises(DataError, match=wanted) as caught:
        load_text_table(write(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_a_missing_table_and_an_unknown_role_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_text_table(tmp_path / "none.csv")
    place = write(tmp_path, "a.csv", "text,label\n" + GOOD)
    with pytest.raises(DataError, match="did you mean 'label'"):
        load_text_table(place, columns={"labels": "label"})


def test_texts_alone_are_lines_or_a_column(tmp_path):
    assert read_texts(write(tmp_path, "a.txt", "one\n\ntwo, three\n")) == ["one", "two, three"]
    assert read_texts(write(tmp_path, "a.csv", "q,n\none,1\n"), "q") == ["one"]
    for name in ("none.txt", "empty.txt"):
        (tmp_path / "empty.txt").write_text("")
        with pytest.raises(DataError, match=name):
            read_texts(tmp_path / name)
