"""``piggyback data``, and data sets by name where other commands take folders."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from torchvision import datasets as torchvision_sets

from piggyback.errors import PiggybackWarning
from piggyback.lab.datasets import DATASETS, dataset, missing
from support import toy_sets
from support.cli_toys import FAST


def test_the_list_has_every_set_and_where_it_is(piggyback):
    toy_sets.cubs(Path("data/cubs"))
    Path("data/gtsrb.tar").write_bytes(b"")
    ran = piggyback("data")
    assert (ran.code, ran.err) == (0, "")
    rows = {line.split()[0]: line for line in ran.out.splitlines() if line.strip()}
    assert set(DATASETS) <= set(rows)
    assert rows["cubs"].split() == ["cubs", "200", "5994", "5794", "data/cubs"]
    assert rows["gtsrb"].split()[-1] == "data/gtsrb.tar"
    assert rows["sketch"].split()[-1] == "missing"
    assert max(map(len, ran.out.splitlines())) <= 80


@pytest.mark.parametrize("name", DATASETS)
def test_one_set_is_shown_in_full(piggyback, name):
    info = dataset(name)
    ran = piggyback("data", name)
    assert (ran.code, ran.err) == (0, "")
    shown = "".join(ran.out.split())
    for part in (info.title, info.licence, info.how_to_get, info.layout, "no: looked in data"):
        assert "".join(part.split()) in shown
    assert ("--download" in ran.out) == (info.download is not None)


def test_json_says_the_same(piggyback, tmp_path):
    toy_sets.cubs(tmp_path / "birds" / "CUB_200_2011")
    row = json.loads(piggyback("data", "cubs", "--root", "birds", "--json").out)
    assert row["counts"] == {"train": 5994, "test": 5794}
    assert row["found"] == "birds/CUB_200_2011"
    rows = json.loads(piggyback("data", "--json").out)
    assert [row["name"] for row in rows] == list(DATASETS)
    assert all(row["found"] is None for row in rows)


def test_fetching(piggyback, monkeypatch):
    monkeypatch.setattr(torchvision_sets, "DTD", lambda root, download: toy_sets.textures(root))
    ran = piggyback("data", "textures", "--download")
    assert (ran.code, ran.err) == (0, "fetching textures ...\n")
    assert "data/textures" in ran.out
    assert piggyback("data", "textures", "--download").err == ""
    ran = piggyback("data", "cubs", "--download")
    ran.refuses("'cubs' cannot be downloaded: get CUB_200_2011.tgz")
    piggyback("data", "--download").refuses("name the set to fetch")


def test_unknown_sets_bring_near_misses(piggyback):
    piggyback("data", "flower").refuses("'flower' is not known; did you mean 'flowers'")


def test_a_sets_name_stands_for_its_folder(piggyback, toy):
    toy_sets.folders(Path("data/gtsrb"))
    arguments = ("--backbone", f"{toy}:build", *FAST, "--method", "head", "--epochs", "1")
    with pytest.warns(PiggybackWarning, match="12 train images, published 3770"):
        ran = piggyback("train", "--data", "gtsrb", *arguments)
    assert ran.code == 0
    assert "wrote runs/gtsrb/gtsrb.safetensors" in ran.out
    with pytest.warns(PiggybackWarning):
        measured = piggyback(
            "evaluate", "runs/gtsrb/gtsrb.safetensors", "--data", "gtsrb", *arguments[:2]
        )
    assert "of 6 images right" in measured.out
    with pytest.warns(PiggybackWarning):
        other = piggyback(
            *("evaluate", "runs/gtsrb/gtsrb.safetensors", "--data", "gtsrb", "--split", "dev"),
            *arguments[:2],
        )
    assert "no split 'dev': it has train, val, test" in other.err
    with pytest.warns(PiggybackWarning):
        compared = piggyback(
            *("compare", "--data", "gtsrb", "--data", "signs=gtsrb", "--methods", "head"),
            *(*arguments[:-4], "--epochs", "1"),
        )
    assert compared.code == 0
    assert Path("piggyback-compare/tasks/signs.safetensors").exists()


def test_warnings_are_one_line_without_a_place_in_the_code(piggyback):
    piggyback("data", "cubs")
    ours = warnings.formatwarning(PiggybackWarning("two counts"), PiggybackWarning, "a.py", 3)
    assert ours == "warning: two counts\n"
    assert "a.py:3" in warnings.formatwarning(UserWarning("x"), UserWarning, "a.py", 3)


def test_a_missing_set_is_one_line(piggyback, toy):
    ran = piggyback("train", "--data", "cubs", "--backbone", f"{toy}:build", *FAST)
    ran.refuses(missing("cubs"))
    assert not Path("runs").exists()


def test_what_is_neither_folder_nor_set(piggyback, toy):
    ran = piggyback("train", "--data", "sketchs", "--backbone", f"{toy}:build", *FAST)
    assert "no such directory, and no data set of that name; did you mean 'sketch'" in ran.err
    ran = piggyback("train", "--data", "sketch", "--backbone", f"{toy}:build", *FAST, "--skip-bad")
    assert "--skip-bad is for folders" in ran.err
