"""Class folders of one's own as tasks of an experiment."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback.errors import DataError, ManifestError
from piggyback.lab.experiments.manifest import load_manifest, parse_manifest
from piggyback.lab.experiments.plan import trials
from piggyback.lab.experiments.runner import Experiment
from piggyback.lab.experiments.sources import Sources, Toy
from piggyback.train import ImageData

TEXT = """
title: Mine
backbones: {tiny: "timm:resnet18"}
sources: {SOURCES}
tasks: {pets: {}}
recipe: {epochs: 1}
methods: {head: {}}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of data sets with three classes of pets, 6 training and 2 test images each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog", "fox"):
            folder = tmp_path / "sets" / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "sets"


def sources(root: Path, text: str) -> Sources:
    manifest = parse_manifest(TEXT.replace("{SOURCES}", text), "mine")
    return Sources((root,), folders=manifest.sources)


def count(data: ImageData) -> int:
    return len(data.train) + len(data.val)


def test_a_folder_is_a_task_without_recipe_fields_of_its_own(root):
    found = sources(root, "{pets: pets}")
    data = found.data("pets")
    assert (data.name, data.classes) == ("pets", ("cat", "dog", "fox"))
    assert (count(data), len(data.test)) == (18, 6)
    assert found.prepared("pets") == {}
    assert found.train_images("pets") == len(data.train)


@pytest.mark.parametrize(
    ("options", "classes", "train"),
    [
        ("classes: [fox, cat]", ("cat", "fox"), 12),
        ("classes: 2", ("cat", "dog"), 12),
        ("train_per_class: 4", ("cat", "dog", "fox"), 12),
        ("classes: 2, train_per_class: 3", ("cat", "dog"), 6),
    ],
)
def test_classes_and_training_images_can_be_limited(root, options, classes, train):
    data = sources(root, f"{{pets: {{folder: pets, {options}}}}}").data("pets")
    assert data.classes == classes
    assert count(data) == train
    assert len(data.test) == 2 * len(classes)
    names = {file.name for file in (*data.train.files, *data.val.files)}
    assert names == {f"{i}.png" for i in range(train // len(classes))}  # the first by name


def test_a_tar_of_the_folder_is_unpacked(root):
    with tarfile.open(root / "packed.tar", "w") as archive:
        archive.add(root / "pets", "packed")
    assert count(sources(root, "{pets: packed}").data("pets")) == 18


def test_a_table_is_a_source_too(root):
    files = sorted((root / "pets").rglob("*.png"))
    rows = [f"{file.relative_to(root)},{file.parent.name},{file.parts[-3]}\n" for file in files]
    (root / "pets.csv").write_text("image,label,split\n" + "".join(rows))
    found = sources(root, "{pets: pets.csv}")
    data = found.data("pets")
    assert (data.name, data.classes, len(data.test)) == ("pets", ("cat", "dog", "fox"), 6)
    assert (count(data), found.train_images("pets")) == (18, len(data.train))
    with pytest.raises(DataError, match=r"'pets': classes are for folders"):
        sources(root, "{pets: {folder: pets.csv, classes: 2}}").data("pets")
    few = sources(root, "{pets: {folder: pets.csv, train_per_class: 3}}").data("pets")
    assert few.train.counts() == [3, 3, 3]
    assert set(few.train.files) < set(data.train.files)
    assert (len(few.val), len(few.test)) == (len(data.val), 6)
    with pytest.raises(DataError, match=r"no folder or table 'none\.csv'"):
        sources(root, "{pets: none.csv}").data("pets")


def test_a_table_of_tagged_words_is_a_source_of_its_kind(root):
    rows = ("Ann sleeps,B-name O,train", "Bo walks,B-name O,train", "Cy runs,B-name O,val")
    (root / "names.csv").write_text("\n".join(("text,label,split", *rows, "Di sits,B-name O,test")))
    data = sources(root, "{pets: {folder: names.csv, kind: tokens}}").data("pets")
    assert (data.train.kind, data.classes) == ("tokens", ("O", "B-name", "I-name"))
    with pytest.raises(DataError, match="train_per_class is for tasks with one class per row"):
        sources(root, "{pets: {folder: names.csv, kind: tokens, train_per_class: 1}}").data("pets")
    with pytest.raises(DataError, match="kind 'tokens' is for tables"):
        sources(root, "{pets: {folder: pets, kind: tokens}}").data("pets")


@pytest.mark.parametrize(
    "options", ["folder: pets, kind: tokens", "folder: t.csv, kind: tokens, train_per_class: 1"]
)
def test_options_that_a_source_cannot_have_are_told_before_anything_trains(root, options):
    (root / "t.csv").write_text("text,label\na b,O O\n")
    manifest = parse_manifest(TEXT.replace("{SOURCES}", f"{{pets: {{{options}}}}}"), "mine")
    with pytest.raises(DataError, match=r"'pets'.*(kind|train_per_class)"):
        Experiment(manifest, Sources((root,), folders=manifest.sources), root / "out").run()
    assert not (root / "out").exists()


def test_what_is_missing_is_told_before_anything_trains(root):
    manifest = parse_manifest(TEXT.replace("{SOURCES}", "{pets: cats}"), "mine")
    found = Sources((root,), folders=manifest.sources)
    assert "'cats'" in found.missing(manifest)["pets"]
    with pytest.raises(DataError, match="'cats'"):
        Experiment(manifest, found, root / "out").run()
    assert not (root / "out").exists()
    with pytest.raises(DataError, match="no class 'dogs'; did you mean 'dog'"):
        sources(root, "{pets: {folder: pets, classes: [cat, dogs]}}").data("pets")


def test_a_training_is_known_by_its_selection_too(root):
    def identity(text: str) -> object:
        (job,) = trials(parse_manifest(TEXT.replace("{SOURCES}", text), "mine"), {})
        return job.identity()

    assert identity("{pets: pets}") == identity("{pets: {folder: pets}}")
    assert identity("{pets: pets}") != identity("{pets: {folder: pets, train_per_class: 3}}")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{pets: {classes: 2}}", "folder"),
        ("{pets: {folder: pets, class: 2}}", "'class'; did you mean 'classes'"),
        ("{pets: {folder: pets, classes: 1}}", "classes"),
        ("{pets: {folder: pets, classes: [1, 2]}}", "classes"),
        ("{pets: {folder: pets, train_per_class: 0}}", "train_per_class"),
        ("{pets: {folder: pets.csv, kind: words}}", "kind"),
        ("{cats: cats}", "'pets'"),
        ("[pets]", "sources"),
    ],
)
def test_mistakes_in_sources_are_named(text, named):
    with pytest.raises(ManifestError, match=named):
        parse_manifest(TEXT.replace("{SOURCES}", text), "mine")


@pytest.mark.parametrize(("name", "tasks"), [("evidence", 10), ("evidence-texts", 5)])
def test_the_evidence_has_its_sets_and_equal_tries(name, tasks):
    manifest = load_manifest(name)
    assert len(manifest.tasks) == tasks
    assert set(manifest.tasks) == set(manifest.sources)
    tries = {label: len(method.trials) for label, method in manifest.methods.items()}
    masks = tries.pop("masks")
    assert masks == 1  # the defaults
    assert len(set(tries.values())) == 1
    assert Toy().data("limits").classes == ("class 0", "class 1", "class 2")
