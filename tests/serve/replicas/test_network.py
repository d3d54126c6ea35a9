"""Live copies answer as the readable model does, whatever a task is made of and whatever they held before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from piggyback.errors import (
    BackboneError,
    BackboneMismatchError,
    InputError,
    TaskFileError,
    TaskStateError,
)
from piggyback.masks.rule import MaskRule
from piggyback.masks.switch import MaskWriter
from piggyback.serve.replicas import network as serving
from piggyback.serve.replicas.network import Network
from piggyback.taskfile.file import load, save
from support.nets import Attention, Tiny, assert_same_state, seeded, state_of
from support.serving_nets import SIDE, Blocks, Twin, backbone, close, random_task

RULES = {
    "plain": MaskRule(),
    "ternary": MaskRule("ternary"),
    "channel": MaskRule(form="channel"),
    "ternary channel": MaskRule("ternary", form="channel"),
    "affine": MaskRule(form="affine"),
}
NORMS = ("frozen", "affine", "trained")


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_tasks_of_all_kinds_in_turn_give_what_the_model_gives(x, head):
    made = backbone(Blocks(head))
    network, twin = Network(made, precision="float32"), Twin(made)
    live = network.new_copy()
    tasks = [
        random_task(made, seed, rule, norm, classes=3 + seed % 2)
        for seed, (rule, norm) in enumerate((r, n) for r in RULES.values() for n in NORMS)
    ]
    packed = {task.name: network.pack(load(save(task), expect=network.shapes)) for task in tasks}
    order = [*tasks, *tasks[::-1], *tasks[::3]]  # many pairs of one task after another
    for task in order:
        live.write(packed[task.name])
        assert close(live.run(x), twin(task, x)), (task.info.rule, list(task.norm)[:1])


def test_bfloat16_is_near(x):
    made = backbone(Blocks())
    network, twin = Network(made, precision="bfloat16"), Twin(made)
    live = network.new_copy()
    for seed, rule in enumerate(RULES.values()):
        for norm in ("frozen", "trained"):
            task = random_task(made, seed + 10 * (norm == "trained"), rule, norm)
            live.write(network.pack(task))
            found = live.run(x)
            assert found.dtype == torch.float32
            assert close(found, twin(task, x), 0.05)
    assert network.speed.startswith("bfloat16, channels last")


def test_a_task_that_masks_other_weights_or_none(x):
    made = backbone(Blocks())
    network, twin = Network(made, precision="float32"), Twin(made)
    live, before = network.new_copy(), network.copy_bytes
    selections = [
        None,
        ["stem", "bn1.weight", "bn2.bias", "wide.bias"],
        ["neck.bias", "norm.weight", "bare"],  # no copy has memory of its own for the bias yet
        "wide",
    ]
    tasks = [random_task(made, seed, select=s) for seed, s in enumerate(selections)]
    tasks.append(random_task(made, 8, MaskRule(form="channel"), select=["bn1.weight", "depth"]))
    bare = random_task(made, 9)
    tasks.append(type(bare)(bare.name, {}, bare.head, info=bare.info))
    for task in [*tasks, *tasks[::-1], *tasks]:
        live.write(network.pack(task))
        assert close(live.run(x), twin(task, x)), list(task.masks)
    assert network.copy_bytes >= before


def test_networks_that_take_no_images_just_run():
    for make, inputs in (
        (Tiny, torch.randn(3, 6)),
        (Attention, torch.randint(0, 17, (3, 6))),
    ):
        made = seeded(make)
        network, twin = Network(made), Twin(made)
        assert network.speed == "float32"
        live = network.new_copy()
        for seed, rule in enumerate(RULES.values()):
            task = random_task(made, seed, rule, "affine")
            live.write(network.pack(task))
            assert close(live.run(inputs), twin(task, inputs), 1e-5)


def test_the_callers_backbone_stays_as_it_is(x):
    made = backbone(Blocks())
    made.module.train()
    state, head = state_of(made.module), made.module.fc
    network = Network(made)
    live = network.new_copy()
    live.write(network.pack(random_task(made, 0)))
    assert_same_state(made.module, state)
    assert made.module.fc is head
    assert made.module.training
    assert all(p.requires_grad for p in made.module.parameters())


def test_what_no_task_changes_is_in_memory_once():
    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 8)
            self.register_buffer("fixed", torch.ones(8))
            self.body = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, 4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.body(self.table(tokens).mean(1) * self.fixed)))

    made = seeded(Embeds)
    network = Network(made)
    one, other = network.new_copy(), network.new_copy()
    one.write(network.pack(random_task(made, 0)))
    tensors = [dict(c._module.state_dict()) for c in (one, other)]
    shared = {n for n in tensors[1] if tensors[0][n].data_ptr() == tensors[1][n].data_ptr()}
    assert shared == {"table.weight", "fixed", "body.bias"}
    tokens = torch.randint(0, 50, (3, 5))
    twin = Twin(made)
    first = random_task(made, 0)
    own = random_task(made, 1, select=["table", "body"])
    other.write(
        network.pack(own)
    )  # it takes memory of its own for the table: the first is not touched
    assert close(one.run(tokens), twin(first, tokens), 1e-5)
    assert close(other.run(tokens), twin(own, tokens), 1e-5)
    head = sum(t.numel() * 4 for t in own.head.values())
    assert (one.extra_bytes, other.extra_bytes) == (head, head + 50 * 8 * 4)
    other.write(network.pack(first))  # and gives it back
    assert other.extra_bytes == head
    assert close(other.run(tokens), twin(first, tokens), 1e-5)
    assert close(one.run(tokens), twin(first, tokens), 1e-5)


def test_a_write_that_fails_leaves_a_copy_that_does_not_answer(x, monkeypatch):
    made = backbone(Blocks())
    network, twin = Network(made, precision="float32"), Twin(made)
    first, second = random_task(made, 0, norm="trained"), random_task(made, 1)
    live = network.new_copy()
    with pytest.raises(TaskStateError, match="expected a whole task"):
        live.run(x)
    live.write(network.pack(first))
    whole = MaskWriter.write_

    def fails(writer, *masks):
        whole(writer, *masks)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(MaskWriter, "write_", fails)
        with pytest.raises(MemoryError):
            live.write(network.pack(second))
    with pytest.raises(TaskStateError):
        live.run(x)
    for task in (first, second):
        live.write(network.pack(task))
        assert close(live.run(x), twin(task, x))


def test_tasks_written_in_inference_mode_and_outside(x):
    made = backbone(Blocks())
    network, twin = Network(made, precision="float32"), Twin(made)
    task, other = random_task(made, 0, norm="trained"), random_task(made, 1)
    with torch.inference_mode():
        live = network.new_copy()
        live.write(network.pack(task))
    live.write(network.pack(other))
    assert close(live.run(x), twin(other, x))


def test_outputs_that_are_not_one_a_class_are_refused(x):
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3)
            self.head = nn.Conv2d(4, 10, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    made = seeded(Maps)
    network = Network(made)
    live = network.new_copy()
    live.write(network.pack(random_task(made, 0)))
    with pytest.raises(InputError, match=r"outputs of shape \(5, 3, 14, 14\) for 5 inputs"):
        live.run(x)


def test_tasks_that_do_not_fit_are_refused_when_packed():
    made = backbone(Blocks())
    network = Network(made, precision="float32")
    other = backbone(Blocks("conv"))
    task = random_task(made, 0)
    with pytest.raises(TaskFileError, match="head of kind 'linear'"):
        network.pack(type(task)("t", task.masks, {}, info=task.info))
    with pytest.raises(BackboneMismatchError):
        network.pack(random_task(seeded(Tiny), 0))
    assert Network(other, precision="float32").fingerprint != network.fingerprint


def test_wrong_preprocessing_and_precision_are_named():
    made = backbone(Blocks())
    with pytest.raises(InputError, match="precision 'float16': expected one of auto"):
        Network(made, precision="float16")
    with pytest.raises(BackboneError, match=r"does not take images of 3 x 16 x 16"):
        Network(type(made)(seeded(Tiny), "toy", made.preprocessing, "head"))


@pytest.mark.slow
def test_a_switch_compiles_nothing():
    made = backbone(Blocks())
    network, twin = Network(made, precision="float32", compile=True), Twin(made)
    live, other = network.new_copy(), network.new_copy()
    x = torch.randn(4, 3, SIDE, SIDE)
    tasks = [random_task(made, seed, classes=2 + seed) for seed in range(4)]
    tasks.append(random_task(made, 5, RULES["channel"], "trained"))
    live.write(network.pack(tasks[0]))
    live.run(x)
    other.write(network.pack(tasks[0]))
    other.run(x)
    counters = torch._dynamo.utils.counters["stats"]
    compiled = counters["unique_graphs"]
    assert compiled
    for task in tasks:
        for each in (live, other):
            each.write(network.pack(task))
            assert close(each.run(x), twin(task, x))
    assert counters["unique_graphs"] == compiled


@pytest.mark.parametrize(("fast", "speed"), [(True, "bfloat16"), (False, "float32")])
def test_the_precision_follows_from_the_processor_alone(monkeypatch, fast, speed):
    monkeypatch.setattr(serving, "multiplies_bfloat16", lambda device: fast)
    assert Network(backbone(Blocks())).speed.startswith(speed)


def test_a_network_that_does_not_run_in_bfloat16_stays_in_float32(monkeypatch):
    class Wide(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * torch.ones(1)) if x.dtype == torch.float32 else x @ x.float()

    made = backbone(Wide())
    monkeypatch.setattr(serving, "multiplies_bfloat16", lambda device: True)
    network = Network(made)
    assert network.speed.startswith("float32, channels last, does not run in bfloat16")
