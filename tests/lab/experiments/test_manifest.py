"""Manifests: what is read, and what each mistake in one is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from piggyback.errors import ManifestError
from piggyback.lab.experiments.manifest import load_manifest, parse_manifest, shipped
from piggyback.lab.experiments.plan import choose, recipe_of, trials
from piggyback.lab.tables.cells import CellRow

TEXT = """
title: Two tasks
backbones: {small: "timm:resnet18"}
tasks: {cubs: {}, cars: {epochs: 3}}
recipe: {epochs: 2, augment: {flip: true}}
seeds: [0, 1]
methods:
  head: {}
  masks: {trials: [{mask_lr: 2e-4}, {mask_lr: 4e-4, rule.kind: ternary}]}
  both orders: {method: packnet, order: [cars, cubs]}
"""


def test_what_a_manifest_says() -> None:
    manifest = parse_manifest(TEXT, "mine")
    assert [method.label for method in manifest.methods] == ["head", "masks", "both orders"]
    assert [method.method for method in manifest.methods] == ["head", "masks", "packnet"]
    assert manifest.methods[2].order == ("cars", "cubs")
    jobs = trials(manifest, {})
    # two tasks by (one trial of head, two of masks), and one sequence
    assert len(jobs) == 2 * 3 + 1
    masks = [job for job in jobs if job.method.label == "masks" and job.tasks == ("cars",)]
    assert [job.recipes["cars"].mask_lr for job in masks] == [2e-4, 4e-4]
    assert masks[1].recipes["cars"].rule.kind == "ternary"
    assert masks[0].recipes["cars"].epochs == 3
    assert masks[0].recipes["cars"].augment.flip
    assert len({job.folder for job in jobs}) == len(jobs)


def test_who_overrides_whom() -> None:
    manifest = parse_manifest(TEXT, "mine")
    jobs = trials(manifest, {"cubs": {"image_size": 32, "epochs": 9}})
    recipe = jobs[0].recipes["cubs"]
    assert (recipe.image_size, recipe.epochs) == (32, 2)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seeds:", "seed:", r"unknown key 'seed'; did you mean 'seeds'"),
        ("  masks: {trials", "  mask: {trials", r"unknown method 'mask'; did you mean 'masks'"),
        ("method: packnet", "method: paknet", r"unknown method 'paknet'; did you mean 'packnet'"),
        (
            "mask_lr: 2e-4",
            "mask_rl: 2e-4",
            r"trial: recipe field 'mask_rl'; did you mean 'mask_lr'",
        ),
        (
            "flip: true",
            "flop: true",
            r"recipe: recipe field 'augment.flop'; did you mean 'augment.flip'",
        ),
        ("order: [cars", "order: [carz", r"method 'both orders': task 'carz'; did you mean 'cars'"),
        ("trials:", "trails:", r"method 'masks': key 'trails'; did you mean 'trials'"),
        ("epochs: 2,", "method: head,", r"recipe: recipe field 'method'"),
        ("head: {}", "head: {}\n  head: {}", r"key 'head' is there twice"),
        ("title: Two tasks", "", r"expected 'title', found none"),
        ("seeds: [0, 1]", "seeds: [a]", r"seeds: expected a list of integers .* \['a'\]"),
        ("head: {}", "head: 3", r"method 'head': expected keys and values, found 3"),
        ("head: {}", "head: {order: [cubs]}", r"only packnet has an order"),
        ("head: {}", "head: {choose: al}", r"method 'head': choose 'al'; did you mean 'all'"),
        ("seeds:", "reference: maske\nseeds:", r"unknown reference 'maske'"),
        ("seeds: [0, 1]", "seeds: [1, 1]", r"seeds: .* each once, found \[1, 1\]"),
        ("seeds:", "published: relased\nseeds:", r"published table 'relased'; .* 'released'"),
        ("head: {}", "head: {published: masks}", r"expected 'published', the table"),
        (
            "seeds: [0, 1]\nmethods:\n  head: {}",
            "published: released\nmethods:\n  head: {published: mask}",
            r"published method of 'head' 'mask'; did you mean 'masks'",
        ),
        ("tasks: {cubs:", "tasks: {cubz: {}, cubs:", r"source 'cubz'; did you mean 'cubs'"),
        (
            "epochs: 2,",
            "epochs: two,",
            r"recipe: epochs: expected a number, a list or null, found 'two'",
        ),
        ("epochs: 2,", "head_lr: null,", r"recipe: head_lr: expected a number, found None"),
        ("epochs: 2,", "amp: no,", r"amp: expected a word, in quotes .*, found False"),
        ("flip: true", "flip: maybe", r"augment.flip: expected true or false, found 'maybe'"),
        ("epochs: 2,", "select: conv1,", r"select: expected a number, a list or null"),
        (
            "order: [cars, cubs]",
            "order: cars",
            r"order: expected a list of tasks, each once, found 'cars'",
        ),
        (
            "order: [cars, cubs]",
            "order: [cars, cars]",
            r"a list of tasks, each once, found \['cars', 'cars'\]",
        ),
        ("head: {}", "head: {max_bits: few}", r"max_bits: expected a number above 0, found 'few'"),
        ('"timm:resnet18"', "{spec: a, pretrained: never}", r"pretrained: expected true or false"),
        ("rule.kind: ternary", "rule.form: channel", r"recipe field 'rule\.form'"),
        ("head: {}", "head: {trials: {}}", r"trials: expected a list of settings, found {}"),
        ('"timm:resnet18"', "{checkpoint: a}", r"backbone 'small': spec: expected a text"),
    ],
)
def test_mistakes_name_the_nearest_valid_word(before: str, after: str, message: str) -> None:
    assert before in TEXT
    with pytest.raises(ManifestError, match=message):
        parse_manifest(TEXT.replace(before, after), "mine")


def test_values_are_checked_before_anything_runs() -> None:
    manifest = parse_manifest(TEXT.replace("epochs: 3", "epochs: 0"), "mine")
    with pytest.raises(ManifestError, match="epochs 0: expected an integer from 1"):
        trials(manifest, {})


def test_jobs_share_a_folder_only_where_they_are_the_same() -> None:
    same = TEXT.replace("  head: {}", "  head: {}\n  again: {method: head}")
    jobs = trials(parse_manifest(same, "mine"), {})
    heads = [job for job in jobs if job.method.method == "head" and job.tasks == ("cubs",)]
    assert len({job.folder for job in heads}) == 1
    lines = [f"  {name}: {{method: masks, recipe: {{select: ['x{name}y']}}}}" for name in "/@"]
    other = TEXT.replace(
        "  head: {}", "\n".join(lines).replace("  /:", "  a:").replace("  @:", "  b:")
    )
    with pytest.raises(ManifestError, match="would share the folder small/cubs/"):
        trials(parse_manifest(other, "mine"), {})


def test_broken_yaml_and_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="mine"):
        parse_manifest("title: [", "mine")
    with pytest.raises(ManifestError, match="expected keys and values"):
        parse_manifest("- a", "mine")
    with pytest.raises(ManifestError, match="did you mean 'table2'"):
        load_manifest("tabel2")
    with pytest.raises(ManifestError, match="No such file"):
        load_manifest(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match=r"bytes.yaml' cannot be read"):
        load_manifest(tmp_path / "bytes.yaml")
    (tmp_path / "own.yaml").write_text(TEXT)
    assert load_manifest(tmp_path / "own.yaml").name == "own"


def test_a_part_of_a_manifest() -> None:
    part = parse_manifest(TEXT, "mine").only(["cubs"], ["masks", "both orders"], [7])
    assert list(part.tasks) == ["cubs"]
    assert part.methods[1].order == ("cubs",)
    assert {job.seed for job in trials(part, {})} == {7}
    without = parse_manifest(TEXT.replace("[cars, cubs]", "[cars]"), "mine").only(["cubs"])
    assert {job.method.label for job in trials(without, {})} == {"head", "masks"}
    with pytest.raises(ManifestError, match=r"each once, found \[7, 7\]"):
        parse_manifest(TEXT, "mine").only(None, None, [7, 7])
    with pytest.raises(ManifestError, match="unknown task 'cub'; did you mean 'cubs'"):
        parse_manifest(TEXT, "mine").only(["cub"])


def test_every_table_of_the_paper_is_there() -> None:
    assert shipped().keys() >= {
        "table2", "table3", "places-imagenet", "decathlon", "segmentation-voc", "ablation-init",
        "ablation-threshold", "ablation-ternary", "ablation-batch-norm", "gtsrb-lite0",
    }  # fmt: skip
    for name in shipped():
        trials(load_manifest(name), {})  # every recipe is one that can be


def test_both_sides_of_the_main_table_have_as_many_trials() -> None:
    methods = {method.label: method for method in load_manifest("gtsrb-lite0").methods}
    assert len(methods["masks"].trials) == len(methods["finetune"].trials)


def row(val: float, bits: float | None) -> CellRow:
    return CellRow("b", "t", "masks", "masks", 0, 50.0, val, bits, 10, 1.0)


def test_the_chosen_trial_is_best_on_val_within_the_bits() -> None:
    rows = {0: [row(80.0, 0.2)], 1: [row(90.0, 0.5)], 2: [row(85.0, 0.3)]}
    assert choose(rows) == 1
    assert choose(rows, max_bits=0.35) == 2
    assert choose(rows, max_bits=0.1) == 0  # none fits: the smallest
    assert choose({0: [row(80.0, None)], 1: [row(81.0, None)]}, max_bits=0.1) == 1
    tasks = {0: [row(80.0, 0.2), row(70.0, 0.2)], 1: [row(90.0, 0.2), row(50.0, 0.2)]}
    assert choose(tasks) == 0  # the mean of all tasks decides


def test_recipes_are_built_from_dotted_names() -> None:
    recipe = recipe_of("masks", 4, {"rule.threshold": 0.0, "epochs": 2}, {"epochs": 3})
    assert (recipe.rule.threshold, recipe.epochs, recipe.seed) == (0.0, 3, 4)
