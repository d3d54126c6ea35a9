"""head="keep": tasks that answer through the backbone's own head, as causal language models do."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from piggyback import MultiTaskModel, load_file, read_header, save_file
from piggyback.errors import (
    BackboneMismatchError,
    InputError,
    TaskFileError,
    TaskStateError,
)
from piggyback.taskfile.task import Task
from support.nets import Tiny, seeded

SMALL = {
    "initializer_range": 0.2,
    "vocab_size": 40,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def gpt2() -> nn.Module:
    """Its head is the embedding, transposed."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    return transformers.GPT2LMHeadModel(config).eval()


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SMALL,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return transformers.LlamaForCausalLM(config).eval()


WORDS = (torch.arange(2, 26).repeat(4, 1) * torch.tensor([[1], [2], [3], [5]])) % 38 + 2


def perplexity(model: nn.Module, **task: object) -> float:
    with torch.no_grad():
        return float(model(input_ids=WORDS, labels=WORDS, **task).loss.exp())


def learn(model: MultiTaskModel, name: str = "tone", steps: int = 30, **options: object) -> Task:
    model.start_task(name, head="keep", **options)
    return go_on(model, steps)


def go_on(model: MultiTaskModel, steps: int) -> Task:
    optimizer = model.optimizer(lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=WORDS, labels=WORDS).loss.backward()
        optimizer.step()
    return model.finish_task()


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_language_task_is_masks_alone_from_training_to_its_file_and_a_plain_network(
    make, tmp_path
):
    network = make()
    model = MultiTaskModel(network)
    head, before = network.lm_head.weight.clone(), perplexity(model, task=None)
    task = learn(model)
    after = perplexity(model, task="tone")
    assert after < 0.9 * before
    assert perplexity(model, task=None) == before
    assert torch.equal(network.lm_head.weight, head)
    assert task.head == {}
    assert task.info.classes == ()

    model.save_task("tone", tmp_path / "tone.safetensors")
    header = read_header(tmp_path / "tone.safetensors")
    assert (header.info.head_kind, header.bytes_head, header.version) == ("keep", 0, 1)
    other = MultiTaskModel(make())
    other.load_task(tmp_path / "tone.safetensors")
    assert perplexity(other, task="tone") == after
    plain = other.bake("tone")
    assert type(plain) is type(network)
    assert perplexity(plain) == after
    asked = {"input_ids": WORDS[:, :4], "max_new_tokens": 8, "do_sample": False}
    said = [m.generate(**asked, **t) for m, t in ((model, {"task": "tone"}), (plain, {}))]
    assert torch.equal(*said)
    assert not torch.equal(said[0], model.generate(**asked, task=None))


def test_it_stands_beside_tasks_with_heads_and_moves_with_them():
    model = MultiTaskModel(llama())
    learn(model)
    model.start_task("topic", ["sport", "law"])
    model.finish_task()
    wanted = perplexity(model.double(), task="tone")
    assert model(input_ids=WORDS, task="topic").logits.shape[-1] == 2
    assert perplexity(model, task="tone") == wanted
    assert perplexity(model.float(), task="tone") == pytest.approx(wanted, rel=1e-4)
    model.delete_task("tone")
    assert model(input_ids=WORDS, task="topic").logits.shape[-1] == 2


def test_another_head_on_the_same_body_is_another_backbone():
    model = MultiTaskModel(llama())
    task = learn(model, steps=5)
    model.start_task("topic", 2)
    ordinary = model.finish_task()
    network = llama()
    with torch.no_grad():
        network.lm_head.weight[0] += 1
    other = MultiTaskModel(network)
    other.add_task(ordinary)
    with pytest.raises(BackboneMismatchError, match="task 'tone' was learned on other weights"):
        other.add_task(task)
    assert other.task_names == ("topic",)


def test_training_is_resumed_and_a_state_with_another_head_refused(tmp_path):
    model, other = MultiTaskModel(gpt2()), MultiTaskModel(gpt2())
    for each in (model, other):
        each.start_task("tone", head="keep")
    optimizer = model.optimizer(lr=2e-3)
    for _ in range(3):
        model(input_ids=WORDS, labels=WORDS).loss.backward()
        optimizer.step()
    state = copy.deepcopy(model.state_dict())
    other.load_state_dict(state)
    assert perplexity(other) == perplexity(model)
    with pytest.raises(TaskStateError, match=r"wte|lm_head"):
        other.load_state_dict({k: v + 1 if "wte" in k else v for k, v in state.items()})


def test_a_task_is_gone_on_from():
    model = MultiTaskModel(llama())
    first = learn(model, steps=10)
    before = perplexity(model, task="tone")
    model.start_task("more", head="keep", start=first)
    assert perplexity(model) == before
    go_on(model, 20)
    assert perplexity(model, task="more") < before


def test_a_classification_may_keep_its_head_too(tmp_path):
    model = MultiTaskModel(seeded(Tiny))
    model.start_task("night", ["a", "b", "c", "d"], head="keep")
    with pytest.raises(TaskStateError, match="in training"):
        model.start_task("day", head="keep")
    task = model.finish_task()
    assert (task.info.kind, task.info.head_kind) == ("classification", "keep")
    save_file(task, tmp_path / "night.safetensors")
    assert load_file(tmp_path / "night.safetensors").info.classes == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "task 'tone': no classes"),
        ({"head": "kept"}, "head 'kept': expected a module, or 'keep'"),
        ({"head": "keep", "masks": False}, "task 'tone' has nothing to train"),
        ({"head": "keep", "classes": 3}, "4 outputs for 3 classes"),
    ],
)
def test_what_cannot_be_learned_is_refused(options, message):
    model = MultiTaskModel(seeded(Tiny))
    with pytest.raises(InputError, match=message):
        model.start_task("tone", **options)
    assert model.training_task is None


def test_a_head_given_with_a_kept_one_is_refused():
    model = MultiTaskModel(seeded(Tiny))
    model.start_task("tone", 4, head="keep")
    task = model.finish_task()
    model.delete_task("tone")
    with pytest.raises(InputError, match="task 'tone' keeps the backbone's own head"):
        model.add_task(task, head=nn.Linear(5, 4))
    with pytest.raises(TaskFileError, match="task 'tone' keeps the backbone's own head"):
        model.add_task(replace(task, head={"weight": torch.zeros(4, 5)}))
