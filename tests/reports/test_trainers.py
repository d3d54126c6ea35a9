"""The Trainer of transformers, with the settings that people use, on tiny networks without downloads."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import transformers
from torch import Tensor, nn

from piggyback import MultiTaskModel
from piggyback.errors import TaskStateError
from support.trainers import bert, rows, trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

T5 = {"vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
GPT2 = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}


def t5() -> nn.Module:
    config = transformers.T5Config(**T5, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    return transformers.T5ForSequenceClassification(config)


def gpt2() -> nn.Module:
    return transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(**GPT2, pad_token_id=0)
    )


def trained(model: MultiTaskModel, folder, data=None, **options):
    """A trainer with the model's own optimizer."""
    return trainer(model, folder, (model.optimizer(lr=1e-2), None), data, **options)


def started(net: nn.Module, classes: int = 3) -> MultiTaskModel:
    model = MultiTaskModel(net)
    model.start_task("a", classes)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing_factor": 0.1},
        {"gradient_checkpointing": True},
        {"neftune_noise_alpha": 5.0},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5},
        {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_the_usual_settings_work(options, tmp_path):
    model = started(bert())
    train = trained(model, tmp_path, **options)
    train.train()
    assert train.evaluate()["eval_loss"] > 0  # without label_names
    assert train.predict(rows()).predictions.shape == (12, 3)
    assert model.finish_task().density < 1


@pytest.mark.parametrize("make", [bert, t5, gpt2])
def test_a_training_is_resumed_to_the_same_bits_and_tied_weights_are_saved_once(make, tmp_path):
    net = make()
    other = copy.deepcopy(net)
    options = {"save_strategy": "epoch", "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    model = started(net)
    trained(model, tmp_path, **options).train()
    again = started(other)
    first = str(tmp_path / "checkpoint-2")
    trained(again, tmp_path, **options).train(resume_from_checkpoint=first)
    one, two = model.state_dict(), again.state_dict()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert model.finish_task().density < 1


def test_tied_weights_that_are_masked_are_saved_once(tmp_path):
    net = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    )
    model = MultiTaskModel(net, head="lm_head", select=["shared", "re:SelfAttention"])
    model.start_task("a", 30)
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows()]
    trained(model, tmp_path, data, save_strategy="epoch").train()
    assert "shared.weight" in model.finish_task().masks
    state = model.state_dict()
    model.load_state_dict(state)
    wrong = {"backbone.encoder.embed_tokens.weight": torch.zeros(30, 16)}
    with pytest.raises(TaskStateError, match="embed_tokens"):
        model.load_state_dict({**state, **wrong})


def test_a_trainer_without_our_optimizer_is_stopped_at_its_second_step(tmp_path):
    model = started(bert())
    with pytest.raises(TaskStateError, match="MaskOptimizer"):
        trainer(model, tmp_path, (None, None)).train()


def test_smoothed_labels_of_a_language_model_are_shifted(tmp_path):
    config = transformers.GPT2Config(**GPT2, pad_token_id=0)
    torch.manual_seed(0)
    net = transformers.GPT2LMHeadModel(config)
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows()]
    batch = {key: torch.stack([row[key] for row in data]) for key in ("input_ids", "labels")}
    plain = copy.deepcopy(net)
    expected = trainer(
        plain, tmp_path, (None, None), data, label_smoothing_factor=0.1
    ).compute_loss(plain, dict(batch))
    model = MultiTaskModel(net)
    found = trainer(model, tmp_path, (None, None), data, label_smoothing_factor=0.1).compute_loss(
        model, dict(batch)
    )
    assert torch.equal(found, expected)


def test_a_model_shows_what_its_backbone_takes_and_is():
    model = started(bert())
    assert model.config is model.backbone.config
    assert model.num_labels == model.config.num_labels == 3
    assert model.get_input_embeddings() is model.backbone.bert.embeddings.word_embeddings
    parameters = inspect.signature(model.forward).parameters
    assert list(parameters)[:2] == ["input_ids", "attention_mask"]
    assert {"labels", "task"} <= parameters.keys()
    assert type(pickle.loads(pickle.dumps(model))) is type(copy.deepcopy(model)) is type(model)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    model.finish_task()
    model.set_task(None)
    assert model.num_labels == 2
    assert isinstance(model, MultiTaskModel)
    assert type(model).__name__ == "BertForSequenceClassification"


def test_the_kind_of_loss_is_each_tasks_own():
    model = MultiTaskModel(bert())
    model.start_task("a", ["x"], kind="regression")
    words = torch.randint(2, 30, (4, 6))
    model(input_ids=words, labels=torch.rand(4))
    model.finish_task()
    model.start_task("b", 3)
    labels = torch.tensor([0, 1, 2, 0])
    output = model(input_ids=words, labels=labels)
    assert torch.equal(output.loss, nn.functional.cross_entropy(output.logits, labels))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.fc(self.body(x) * scale)


def test_an_own_networks_signature_is_shown_too():
    model = MultiTaskModel(Own())
    assert list(inspect.signature(model.forward).parameters) == ["x", "scale", "task"]
    assert model(torch.zeros(2, 4), scale=2.0, task=None).shape == (2, 5)
