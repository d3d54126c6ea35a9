"""Manifests: what is read, and what each mistake in one is answered with."""

from __future__ import annotations

import pytest

from piggyback.errors import ManifestError
from piggyback.lab.experiments.manifest import load_manifest, parse_manifest, shipped
from piggyback.lab.experiments.plan import choose, trials
from piggyback.lab.tables.rows import Row

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


def test_what_a_manifest_says():
    manifest = parse_manifest(TEXT, "mine")
    methods = {label: method.method for label, method in manifest.methods.items()}
    assert methods == {"head": "head", "masks": "masks", "both orders": "packnet"}
    assert manifest.methods["both orders"].order == ("cars", "cubs")
    assert manifest.backbones["small"].spec == "timm:resnet18"
    jobs = trials(manifest, {})
    # two tasks by (one trial of head, two of masks), and one sequence
    assert len(jobs) == 2 * 3 + 1
    masks = [job for job in jobs if job.label == "masks" and job.tasks == ("cars",)]
    assert [job.recipes["cars"].mask_lr for job in masks] == [2e-4, 4e-4]
    assert masks[1].recipes["cars"].rule.kind == "ternary"
    assert masks[0].recipes["cars"].epochs == 3
    assert masks[0].recipes["cars"].augment.flip
    assert len({job.folder for job in jobs}) == len(jobs)


def test_who_overrides_whom():
    manifest = parse_manifest(TEXT, "mine")
    jobs = trials(manifest, {"cubs": {"image_size": 32, "epochs": 9}})
    recipe = jobs[0].recipes["cubs"]
    assert (recipe.image_size, recipe.epochs) == (32, 2)


MISTAKES = [
    ("seeds:", "seed:", "unknown key 'seed'; did you mean 'seeds'"),
    ("title: Two tasks", "title: Two tasks\nname: own", "unknown key 'name'"),
    ("trials:", "trails:", "methods.masks: unknown key 'trails'; did you mean 'trials'"),
    (
        '"timm:resnet18"',
        "{spec: a, check: b}",
        "backbones.small: unknown key 'check'; .* 'checkpoint'",
    ),
    (
        "method: packnet",
        "method: paknet",
        "methods.both orders: unknown method 'paknet'; .* 'packnet'",
    ),
    ("mask_lr: 2e-4", "mask_rl: 2e-4", "methods.masks.trials.0: .* field 'mask_rl'; .* 'mask_lr'"),
    ("rule.kind: ternary", "rule.form: channel", "recipe field 'rule.form'"),
    ("epochs: 2,", "method: head,", "recipe: unknown recipe field 'method'"),
    ("order: [cars", "order: [carz", "methods.both orders: unknown task 'carz'; .* 'cars'"),
    ("tasks: {cubs:", "tasks: {cubz: {}, cubs:", "unknown data set or source 'cubz'; .* 'cubs'"),
    ("seeds:", "reference: maske\nseeds:", "unknown reference 'maske'; did you mean 'masks'"),
    ("seeds:", "published: relased\nseeds:", "published table 'relased'; .* 'released'"),
    ("head: {}", "head: {published: masks}", "expected 'published', the table"),
    (
        "seeds: [0, 1]\nmethods:\n  head: {}",
        "published: released\nmethods:\n  head: {published: mask}",
        "methods.head: unknown published method 'mask'; did you mean 'masks'",
    ),
    ("head: {}", "head: {}\n  head: {}", "key 'head' appears twice"),
    ("title: Two tasks", "", "title: Field required"),
    ("title: Two tasks", "title: 2", "title: .* valid string, found 2"),
    ("tasks: {cubs: {}, cars: {epochs: 3}}", "tasks: {}", "tasks: .* found {}"),
    ("seeds: [0, 1]", "seeds: [a]", r"seeds.0: .* integer, found 'a'"),
    ("seeds: [0, 1]", "seeds: [1, 1]", r"seeds: .* each once, found \[1, 1\]"),
    ("head: {}", "head: 3", "methods.head: .* found 3"),
    ("head: {}", "head: {order: [cubs]}", "methods.head: only packnet has an order"),
    ("head: {}", "head: {choose: al}", "methods.head.choose: .*'each' or 'all', found 'al'"),
    ("head: {}", "head: {trials: []}", r"methods.head.trials: .* found \[\]"),
    ("head: {}", "head: {max_bits: 0}", "methods.head.max_bits: .* greater than 0, found 0"),
    ('"timm:resnet18"', "{checkpoint: a}", "backbones.small.spec: Field required"),
    ("order: [cars, cubs]", "order: [cars, cars]", "methods.both orders.order: .* each once"),
]


@pytest.mark.parametrize(("before", "after", "message"), MISTAKES)
def test_mistakes_name_the_nearest_valid_word(before, after, message):
    assert before in TEXT
    with pytest.raises(ManifestError, match=f"^experiment 'mine': .*{message}") as caught:
        parse_manifest(TEXT.replace(before, after), "mine")
    assert "\n" not in str(caught.value)


def test_values_are_checked_before_anything_runs():
    for old, new, message in (
        ("epochs: 3", "epochs: 0", "epochs 0: expected an integer from 1"),
        ("epochs: 2,", "head_lr: null,", "head_lr None: expected a finite number"),
        ("epochs: 2,", "amp: no,", "amp False: expected one of auto"),  # YAML has it as a boolean
    ):
        with pytest.raises(ManifestError, match=f"experiment 'mine': method 'head': .*{message}"):
            trials(parse_manifest(TEXT.replace(old, new), "mine"), {})


def test_jobs_share_a_folder_only_where_they_are_the_same():
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


def test_broken_yaml_and_unknown_names(tmp_path):
    with pytest.raises(ManifestError, match="mine"):
        parse_manifest("title: [", "mine")
    with pytest.raises(ManifestError, match="expected keys and values"):
        parse_manifest("- a", "mine")
    with pytest.raises(ManifestError, match="too deep"):
        parse_manifest("title: " + "[" * 5000, "mine")
    with pytest.raises(ManifestError, match="did you mean 'table2'"):
        load_manifest("tabel2")
    with pytest.raises(ManifestError, match="No such file"):
        load_manifest(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match=r"bytes.yaml' cannot be read"):
        load_manifest(tmp_path / "bytes.yaml")
    (tmp_path / "own.yaml").write_text(TEXT)
    assert load_manifest(tmp_path / "own.yaml").name == "own"


def test_a_part_of_a_manifest():
    part = parse_manifest(TEXT, "mine").only(["cubs"], ["masks", "both orders"], [7])
    assert list(part.tasks) == ["cubs"]
    assert part.methods["both orders"].order == ("cubs",)
    assert {job.seed for job in trials(part, {})} == {7}
    without = parse_manifest(TEXT.replace("[cars, cubs]", "[cars]"), "mine").only(["cubs"])
    assert {job.label for job in trials(without, {})} == {"head", "masks"}
    with pytest.raises(ManifestError, match=r"each once, found \[7, 7\]"):
        parse_manifest(TEXT, "mine").only(None, None, [7, 7])


def test_every_table_of_the_paper_is_there():
    assert shipped().keys() >= {
        "table2", "table3", "places-imagenet", "decathlon", "segmentation-voc", "ablation-init",
        "ablation-threshold", "ablation-ternary", "ablation-batch-norm", "gtsrb-lite0",
    }  # fmt: skip
    for name in shipped():
        trials(load_manifest(name), {})  # every recipe is one that can be


def test_both_sides_of_the_main_table_have_as_many_trials():
    methods = load_manifest("gtsrb-lite0").methods
    assert len(methods["masks"].trials) == len(methods["finetune"].trials)


def row(val: float, bits: float | None) -> Row:
    return Row("b", "t", "masks", "masks", 0, 50.0, val, bits, 10, 1.0)


def test_the_chosen_trial_is_best_on_val_within_the_bits():
    rows = {0: [row(80.0, 0.2)], 1: [row(90.0, 0.5)], 2: [row(85.0, 0.3)]}
    assert choose(rows) == 1
    assert choose(rows, max_bits=0.35) == 2
    assert choose(rows, max_bits=0.1) == 0  # none fits: the smallest
    assert choose({0: [row(80.0, None)], 1: [row(81.0, None)]}, max_bits=0.1) == 1
    tasks = {0: [row(80.0, 0.2), row(70.0, 0.2)], 1: [row(90.0, 0.2), row(50.0, 0.2)]}
    assert choose(tasks) == 0  # the mean of all tasks decides
