"""Tables: what is read, and what is wrong with a table, by its row."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from piggyback.errors import DataError
from piggyback.images.decode import content_key
from piggyback.train.data.columns import read_files, read_texts
from piggyback.train.data.table import Table, load_table

GOOD = "".join(f"text {i} good,good\ntext {i} bad,bad\n" for i in range(20))


def write(folder, name, text, encoding="utf-8"):
    place = folder / name
    place.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return place


def test_csv_tsv_and_json_lines_read_the_same(tmp_path):
    rows = [('a , "b"', "x"), ("c", "y"), ("d", "x")] * 5
    quoted = "".join('"{}",{}\n'.format(text.replace('"', '""'), label) for text, label in rows)
    files = [
        write(tmp_path, "a.csv", "text,label\n" + quoted),
        write(tmp_path, "bom.csv", "\ufefftext,label\r\n" + quoted.replace("\n", "\r\n")),
        write(tmp_path, "semi.csv", "\ufefftext;label\n" + quoted.replace('",', '";')),
        write(tmp_path, "tabs.csv", "text\tlabel\n" + quoted.replace('",', '"\t')),
        write(tmp_path, "spaces.csv", "text, label \n" + quoted.replace('",', '", ') + ",\n  \n,\n"),
        write(tmp_path, "a.tsv", "text\tlabel\n" + "".join(f"{t}\t{n}\n" for t, n in rows)),
        write(tmp_path, "a.jsonl", "".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows)),
    ]  # fmt: skip
    for file in files:
        found = Table(file).splits["train"]
        assert found.classes == ("x", "y")
        assert list(zip(found.texts, found.labels.tolist(), strict=True)) == [
            (t, "xy".index(n)) for t, n in rows
        ]


def test_columns_and_splits_go_by_name(tmp_path):
    lines = "q,mood,fold\n" + "".join(
        f"t{i},{'ab'[i % 2]},{('Train', 'dev', 'testing')[i % 3]}\n" for i in range(18)
    )
    columns = {"text": "q", "label": "mood", "split": "fold"}
    data = load_table(write(tmp_path, "a.csv", lines), "x", columns)
    assert {split: len(part) for split, part in data.splits().items()} == {
        "train": 6,
        "val": 6,
        "test": 6,
    }
    assert data.cut == ()


def test_splits_that_are_missing_are_cut_by_content(tmp_path):
    data = load_table(write(tmp_path, "a.csv", "text,label\n" + GOOD))
    assert sum(len(part) for part in data.splits().values()) == 40
    assert {each.split for each in data.cut} == {"val", "test"}
    again = load_table(write(tmp_path, "b.csv", "text,label\n" + GOOD))
    assert data.test.texts == again.test.texts
    rare = "".join(f"odd {i},odd\n" for i in range(3))
    for part in load_table(write(tmp_path, "c.csv", f"text,label\n{GOOD}{rare}")).splits().values():
        assert min(part.counts()) > 0


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.csv", "sentence,label\n" + GOOD, "no column 'text'.*'sentence'.*columns="),
        ("a.csv", "text,class\n" + GOOD, "no column 'label'.*'class'"),
        ("a.csv", "text,label\na,x\n,y\n", "row 2.*empty"),
        ("a.csv", "text,label\na,x\n  ,y\n", "row 2.*empty"),
        ("a.csv", "text,label\na,x\nb,\n", "row 2.*label ''"),
        ("a.csv", "text,label\na,x\nb,y,z\n", "row 2.*3 cells.*2"),
        ("a.csv", "text,label\na\n", "row 1.*1 cells"),
        ("a.csv", "text|label\na|x\n", "no column 'text'.*'text.label'"),
        ("a.csv", "text,text\na,x\n", "two columns 'text'"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.csv", "", "empty"),
        ("a.csv", 'text,label\n"a,x\n', "whole table"),
        ("a.csv", "text,label\nä,x\n".encode("latin-1"), "UTF-8"),
        ("a.csv", "text,label,split\na,x,train\nb,x,val\nc,x,test\n", "1 class"),
        ("a.csv", "text,label,split\na,x,train\nb,y,sometimes\n", "row 2.*'sometimes'.*train, val or test"),
        ("a.csv", "text,label,split\na,x,test\nb,y,test\n", "expected one called train"),
        ("a.csv", "text,label,split\na,cat,train\nb,dog,train\nc,dgo,val\n", "'dgo' is in val.*did you mean 'dog'"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": 5, "label": "y"}\n', "row 2: text 5: expected a text"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": null, "label": "y"}\n', "row 2: text None"),
        ("a.jsonl", '{"text": "a", "label": ["x"]}\n', "row 1: label"),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', "row 1: label 0.5"),
        ("a.jsonl", '["a", "x"]\n', "row 1.*an object"),
        ("a.jsonl", '{"text": "a"\n', "row 1: cannot be read as JSON"),
        ("a.csv", 'text,label\na,x\n"b,y\n', "row 2: .*whole table"),
        ("a.tsv", 'text\tlabel\n"a"\t"x"\n"b"\t"y"\n', "row 1: 'text'.*in quotes.*csv"),
        ("a.tsv", 'text\tlabel\na\tx\n"say ""b"""\ty\n', "row 2: 'text'.*in quotes.*csv"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": "x", "label": "y"}\n', "row 2: .*'label'"),
        ("a.jsonl", '{"text": ' + "[" * 100_000 + "\n", "row 1: .*too deep"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_named(tmp_path, name, text, wanted):
    with pytest.raises(DataError, match=wanted) as caught:
        load_table(write(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_a_missing_table_and_an_unknown_role_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_table(tmp_path / "none.csv")
    place = write(tmp_path, "a.csv", "text,label\n" + GOOD)
    with pytest.raises(DataError, match="did you mean 'label'"):
        load_table(place, columns={"labels": "label"})


def test_texts_alone_are_lines_or_a_column(tmp_path):
    assert read_texts(write(tmp_path, "a.txt", "one\n\ntwo, three\n")) == ["one", "two, three"]
    assert read_texts(write(tmp_path, "a.csv", "q,n\none,1\n"), "q") == ["one"]
    write(tmp_path, "empty.txt", "")
    write(tmp_path, "names.csv", "text,image\n")
    write(tmp_path, "a.ndjson", '{"text": "one"}\n')
    with pytest.raises(DataError, match=r"names\.csv.*no rows"):
        read_files(tmp_path / "names.csv")
    for name in ("none.txt", "empty.txt", "names.csv", "a.ndjson"):
        with pytest.raises(DataError, match=name):
            read_texts(tmp_path / name)


# -- images, several labels, numbers ---------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """A folder with 12 images, 00.png to 11.png."""
    drawn = np.random.default_rng(0)
    for i in range(12):
        pixels = drawn.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
    return tmp_path


def test_images_lie_beside_their_table(photos):
    lines = "".join(f"{i:02d}.png,{'ab'[i % 2]}\n" for i in range(12))
    data = load_table(write(photos, "a.csv", "image,label\n" + lines))
    files = {file.name for part in data.splits().values() for file in part.files}
    assert files == {f"{i:02d}.png" for i in range(12)}
    assert data.kind == "classification"
    assert data.classes == ("a", "b")


def test_several_labels_in_a_cell_a_list_or_columns_are_the_same(photos):
    rows = [(f"{i:02d}.png", [n for n in "ab" if i % (2 + "ab".index(n)) == 0]) for i in range(12)]
    cells = "".join(f"{file},{'|'.join(names)}\n" for file, names in rows)
    lists = "".join(json.dumps({"image": f, "label": n}) + "\n" for f, n in rows)
    flags = "".join(f"{f},{int('a' in n)},{int('b' in n)}\n" for f, n in rows)
    python = "".join(f'{file},"{names or ""}"\n' for file, names in rows)
    tables = [
        Table(write(photos, "d.csv", "image,label\n" + python), None, "multilabel").splits,
        Table(write(photos, "a.csv", "image,label\n" + cells), None, "multilabel", separator="|").splits,
        Table(write(photos, "b.jsonl", lists), None, "multilabel").splits,
        Table(write(photos, "c.csv", "image,a,b\n" + flags), {"label": "a,b"}, "multilabel").splits,
    ]  # fmt: skip
    for found in tables:
        assert found["train"].classes == ("a", "b")
        assert found["train"].labels.tolist() == [["a" in n, "b" in n] for _, n in rows]


def test_numbers_have_the_unit_in_their_columns_name(photos):
    lines = "".join(f"{i:02d}.png,{i / 2},{-i}\n" for i in range(12))
    place = write(photos, "a.csv", "image,height (m),depth\n" + lines)
    found = Table(place, {"label": "height (m),depth"}, "regression").splits["train"]
    assert (found.classes, found.units) == (("height", "depth"), ("m", ""))
    assert found.labels.tolist() == [[i / 2, -i] for i in range(12)]


def test_numbers_that_float32_cannot_tell_apart_are_said_before_training(photos):
    """Seconds of a few minutes in 2025 are; those of years are not, nor a number that is the same everywhere."""
    start = 1764355200
    lines = "".join(
        f"{i:02d}.png,{start + 7 * i},{start + 10**7 * i},{i / 10}\n" for i in range(12)
    )
    place = write(photos, "a.csv", "image,seconds (s),years,height\n" + lines)
    data = load_table(place, columns={"label": "seconds (s),years,height"}, kind="regression")
    (said,) = [note for note in data.notes if "float32" in note]
    assert said.startswith("'seconds' loses up to 6")


def test_a_group_stays_in_one_split(photos):
    lines = "".join(f"{i:02d}.png,{'ab'[i % 2]},{i // 4}\n" for i in range(12))
    place = write(photos, "a.csv", "image,label,patient\n" + lines)
    for seed in range(20):
        try:
            data = load_table(place, columns={"group": "patient"}, seed=seed)
        except DataError:  # three groups may lie badly for three splits
            continue
        groups = [{int(f.stem) // 4 for f in part.files} for part in data.splits().values()]
        assert sum(map(len, groups)) == len(set.union(*groups))


@pytest.mark.parametrize(
    ("kind", "columns", "header", "row", "wanted"),
    [
        ("classification", {}, "image,label", "none.png,a", "row 13: .*none.png"),
        ("classification", {}, "image,label", "a.csv,a", "row 13: .*a.csv"),
        ("classification", {}, "image,label", ",a", "row 13: image ''"),
        ("classification", {}, "image,label", "https://a.b/c.png,a", "row 13: .*https://a.b/c.png"),
        ("classification", {"label": "a,b"}, "image,a,b", "00.png,1,0", "2 columns of labels"),
        ("classification", {"label": "klass"}, "image,label", "00.png,a", "no column 'klass'.*'label'"),
        ("classification", {"labl": "a"}, "image,label", "00.png,a", "labl=a.*label"),
        ("tags", {}, "image,label", "00.png,a", "kind 'tags'.*multilabel"),
        ("regression", {}, "image,label", "00.png,tall", "row 13: 'label' is 'tall'"),
        ("regression", {}, "image,label", "00.png,nan", "row 13: 'label' is 'nan'"),
        ("regression", {}, "image,label", "00.png,", "row 13: 'label' is ''"),
        ("regression", {}, "image,label", "00.png,inf", "row 13: 'label' is 'inf'"),
        ("regression", {}, "image,label", '00.png,"1,5"', "row 13: 'label' is '1,5'.*a point and no comma"),
        ("regression", {}, "image,label", "00.png,1_5", "row 13: 'label' is '1_5'"),
        ("multilabel", {}, "image,label", '00.png,"[true, false]"', "row 13: .*column of 0 and 1"),
        ("multilabel", {}, "image,label", '00.png,"[0, 0, 1]"', "row 13: .*column of 0 and 1"),
        ("multilabel", {"label": "a,b"}, "image,a,b", "00.png,1,2", "row 13: label 'b' is '2'"),
        ("multilabel", {}, "image,label", '00.png,"a,a"', "row 13: labels 'a,a'.*once"),
        ("multilabel", {}, "image,label", '00.png,"[a"', "row 13: labels .*a list such as"),
        ("multilabel", {}, "image,label", '00.png,"{a,b}"', "row 13: labels .*a list such as"),
        ("multilabel", {}, "image,label", """00.png,"['a' 'b']\"""", "row 13: labels .*a list such as"),
        ("multilabel", {}, "image,label,split", '00.png,c,val', "row 13: label 'c' is in val"),
        ("classification", {"group": "who"}, "image,label,who", "00.png,a,", "row 13: who is empty"),
        ("classification", {"group": "who"}, "image,label,split,who", "00.png,a,test,1", "row 13: group .1. is in"),
        ("classification", {"image": "image", "text": "label"}, "image,label", "00.png,a", "image and for text"),
    ],
)  # fmt: skip
def test_bad_tables_name_the_row_and_what_was_expected(photos, kind, columns, header, row, wanted):
    cells = {"split": "train", "who": "1", "a": "1", "b": "0"}
    numbers = {"regression": "1.5"}.get(kind, "a")
    names = header.split(",")
    good = "".join(
        ",".join({**cells, "image": f"{i:02d}.png", "label": numbers}[name] for name in names)
        + "\n"
        for i in range(12)
    )
    place = write(photos, "a.csv", f"{header}\n{good}{row}\n")
    with pytest.raises(DataError, match=wanted):
        load_table(place, None, columns, kind)


def test_labels_and_columns_that_mean_something_else_are_said(tmp_path):
    label = ["a", "b", '"a,b"', "NA"]
    lines = "".join(f"text {i},{label[i % 4]},{i % 3 > 0}\n" for i in range(40))
    data = load_table(write(tmp_path, "a.csv", "text,label,is_valid\n" + lines))
    told = "; ".join(data.notes)
    assert "'NA' is a class of its own" in told
    assert "class 'a,b' is made of other classes" in told
    assert "'is_valid' was not used" in told


def test_labels_that_every_row_has_are_said_or_are_no_labels(photos):
    rows = [{"image": f"{i:02d}.png", "label": ["a", "b"] if i % 2 else "a"} for i in range(12)]
    data = load_table(
        write(photos, "a.jsonl", "\n".join(map(json.dumps, rows))), None, kind="multilabel"
    )
    assert any("all training rows" in note and note.count("a:") for note in data.notes)
    hot = [{**row, "label": [i % 2, 1 - i % 2]} for i, row in enumerate(rows)]
    with pytest.raises(DataError, match="column of 0 and 1"):
        load_table(
            write(photos, "b.jsonl", "\n".join(map(json.dumps, hot))), None, kind="multilabel"
        )


def test_an_image_in_several_rows_is_said_and_with_other_labels_refused(photos):
    lines = "".join(f"{i:02d}.png,{'ab'[i % 2]},train\n" for i in range(12))
    again = lines + "./00.png,a,train\n00.png,a,test\n01.png,b,val\n"
    data = load_table(write(photos, "a.csv", "image,label,split\n" + again))
    assert len(data.train) == 13
    assert data.notes[-1].startswith("3 rows have an image that an earlier row has")
    for split in ("val", "test"):
        assert any(note.startswith(f"1 images of {split} are also in train") for note in data.notes)
    with pytest.raises(DataError, match=r"row 13: image '00\.png' has other labels than in row 1"):
        load_table(write(photos, "b.csv", "image,label,split\n" + lines + "00.png,b,train\n"))


def test_characters_that_separate_lines_elsewhere_stay_in_a_cell(tmp_path):
    text = "one\u2028two\x0bthree\x85"
    files = [
        write(tmp_path, "a.csv", f"text,label\n{text},a\nb,b\n"),
        write(tmp_path, "a.tsv", f"text\tlabel\n{text}\ta\nb\tb\n"),
        write(tmp_path, "a.jsonl", '{"text": "one\u2028two", "label": "a"}\n{"text": "b", "label": "b"}\n'),
    ]  # fmt: skip
    for file in files:
        found = Table(file).splits["train"]
        assert len(found) == 2
        assert "\u2028two" in found.texts[0]


def test_a_file_in_many_rows_is_looked_at_once_and_stays_in_one_split(tmp_path, monkeypatch):
    asked = []

    def key(path):
        asked.append(path)
        return content_key(path)

    monkeypatch.setattr("piggyback.images.decode.content_key", key)
    for i in range(40):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i}.png")
    lines = "".join(f"{i % 40}.png,{'ab'[i % 2]}\n" for i in range(6000))
    (tmp_path / "a.csv").write_text("image,label\n" + lines)
    data = load_table(tmp_path / "a.csv")
    assert len(asked) == 40
    parts = [{file.name for file in part.files} for part in data.splits().values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    assert sum(len(part) for part in data.splits().values()) == 6000
    assert data.notes == ("5960 rows have an image that an earlier row has; they were kept",)
