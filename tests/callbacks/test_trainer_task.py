"""TrainerTask: a task file from the Trainer of transformers."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from transformers import TrainerCallback

from piggyback import MultiTaskModel
from piggyback.callbacks import TrainerTask
from piggyback.errors import InputError, TaskStateError
from support.trainers import bert, rows, trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Wrapped(nn.Module):
    """A network whose signature says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert()

    def forward(self, **inputs):
        return self.inner(**inputs)


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_evaluate(self, args, state, control, metrics, **_):
        self.found.append(metrics["eval_loss"])


def test_training_leaves_the_best_epochs_task_in_a_file(tmp_path):
    model, losses = MultiTaskModel(bert()), Losses()
    task = TrainerTask(model, tmp_path / "runs" / "tone.safetensors", ["bad", "good", "so-so"])
    every_epoch = {
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "load_best_model_at_end": True,
    }
    optimizers = task.optimizers(6)
    train = trainer(
        model, tmp_path, optimizers, callbacks=[task, losses], metric_for_best_model="eval_loss",
        greater_is_better=True, **every_epoch,
    )  # fmt: skip
    train.train()  # the best by that order is the first, which is not the last
    assert losses.found[0] > losses.found[1]
    assert model.training_task is None
    assert task.task is not None
    assert train.evaluate()["eval_loss"] == pytest.approx(losses.found[0], rel=1e-3)
    other = MultiTaskModel(bert())
    assert other.load_task(tmp_path / "runs" / "tone.safetensors") == "tone"
    words = torch.stack([row["input_ids"] for row in rows()])
    answers = [m.eval()(input_ids=words, task="tone").logits for m in (model, other)]
    assert torch.equal(*answers)


def test_the_first_process_alone_writes(tmp_path):
    model = MultiTaskModel(bert())
    task = TrainerTask(model, tmp_path / "tone.safetensors", 3)
    train = trainer(model, tmp_path, task.optimizers(6), callbacks=[task])
    task.on_train_end(train.args, transformers.TrainerState(is_world_process_zero=False), None)
    assert task.task is not None
    assert not task.path.exists()


def test_a_trainer_with_another_optimizer_is_refused_when_it_is_made(tmp_path):
    model = MultiTaskModel(bert())
    task = TrainerTask(model, tmp_path / "tone.safetensors", 3)
    with pytest.raises(TaskStateError, match="task 'tone' is not in training"):
        trainer(model, tmp_path, (None, None), callbacks=[task])
    task.optimizers(6)
    with pytest.raises(TaskStateError, match=r"task 'tone'.*no optimizer.*MaskOptimizer"):
        trainer(model, tmp_path, (None, None), callbacks=[task])
    other = torch.optim.AdamW(model.parameters())
    with pytest.raises(TaskStateError, match=r"task 'tone'.*AdamW.*MaskOptimizer"):
        trainer(model, tmp_path, (other, None), callbacks=[task])
    with pytest.raises(TaskStateError, match="task 'tone' is not in training in the model"):
        trainer(MultiTaskModel(bert()), tmp_path, task.optimizers(6), callbacks=[task])


def test_another_number_of_steps_is_refused_before_the_first(tmp_path):
    model = MultiTaskModel(bert())
    task = TrainerTask(model, tmp_path / "tone.safetensors", 3)
    train = trainer(model, tmp_path, task.optimizers(5), callbacks=[task])
    with pytest.raises(InputError, match=r"task 'tone': optimizers\(5\).* takes 6 steps"):
        train.train()
    assert train.state.global_step == 0
    assert not task.path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "remove_unused_columns=False"),
        ({"remove_unused_columns": False, "eval_strategy": "epoch"}, "label_names="),
    ],
)
def test_arguments_that_would_lose_inputs_or_labels_are_refused(options, message, tmp_path):
    model = MultiTaskModel(Wrapped(), head="inner.classifier")
    task = TrainerTask(model, tmp_path / "tone.safetensors", 3)
    with pytest.raises(InputError, match=rf"task 'tone': Wrapped\.forward .*{message}"):
        trainer(model, tmp_path, task.optimizers(6), callbacks=[task], **options)


def test_a_language_model_learns_with_its_own_head(tmp_path):
    torch.manual_seed(0)
    small = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    config = transformers.GPT2Config(**small, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    model = MultiTaskModel(transformers.GPT2LMHeadModel(config))
    task = TrainerTask(model, tmp_path / "words.safetensors", head="keep")
    train = trainer(model, tmp_path, task.optimizers(6), callbacks=[task])
    train.train_dataset = [{**row, "labels": row["input_ids"]} for row in rows()]
    train.train()
    assert task.task is not None
    assert (task.task.info.head_kind, task.task.head) == ("keep", {})
    assert 0 < task.task.density < 1
    assert task.path.exists()
