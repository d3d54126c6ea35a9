"""LightningTask: a task file from Lightning's own trainer."""

from __future__ import annotations

import multiprocessing

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from piggyback import MultiTaskModel
from piggyback.callbacks import LightningTask
from piggyback.errors import InputError, TaskStateError
from support.nets import Tiny, seeded

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Learner(lightning.LightningModule):
    def __init__(self, *models, optimizer=lambda model: model.optimizer(steps=8)) -> None:
        super().__init__()
        self.models, self.made = nn.ModuleList(models), optimizer
        self.modes: set[bool] = set()
        self.fails_at = -1

    def training_step(self, batch, index):
        if self.global_step == self.fails_at:
            raise ZeroDivisionError
        self.modes.add(self.models[0].training)
        return nn.functional.cross_entropy(self.models[0](batch[0]), batch[1])

    def configure_optimizers(self):
        return self.made(self.models[0])


def fit(learner, callback, folder, others=(), **options):
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(32, 6, generator=generator), torch.arange(32) % 3)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback, *others],
        **options,
    )
    trainer.fit(learner, DataLoader(data, batch_size=8))


def test_fit_leaves_a_task_file_that_answers_as_the_trained_model(tmp_path):
    model = MultiTaskModel(seeded(Tiny).eval())
    learner = Learner(model)
    callback = LightningTask(
        tmp_path / "runs" / "signs.safetensors", ["a", "b", "c"], norm="frozen"
    )
    fit(learner, callback, tmp_path, accumulate_grad_batches=2, gradient_clip_val=1.0)
    assert learner.modes == {True}
    assert model.training_task is None
    assert callback.task is not None
    assert callback.task.density < 1
    other = MultiTaskModel(seeded(Tiny).eval())
    assert other.load_task(tmp_path / "runs" / "signs.safetensors") == "signs"
    x = torch.randn(4, 6)
    assert torch.equal(other(x, task="signs"), model.eval()(x, task="signs"))
    assert other.get_task("signs").info.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    "made",
    [
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        lambda model: torch.optim.SGD(model.backbone.head.parameters(), lr=0.1),
        lambda model: None,
    ],
    ids=["weights", "head", "none"],
)
def test_a_trainer_without_a_mask_optimizer_is_refused_before_a_step(made, tmp_path):
    learner = Learner(MultiTaskModel(seeded(Tiny)), optimizer=made)
    with pytest.raises(TaskStateError, match=r"task 'signs'.*MaskOptimizer"):
        fit(learner, LightningTask(tmp_path / "signs.safetensors", 3), tmp_path)
    assert not learner.modes
    assert not list(tmp_path.glob("*.safetensors"))


def test_an_optimizer_of_an_earlier_task_is_refused(tmp_path):
    model = MultiTaskModel(seeded(Tiny))
    model.start_task("first", 3)
    old = model.optimizer(steps=8)
    model.finish_task()
    learner = Learner(model, optimizer=lambda _: old)
    with pytest.raises(TaskStateError, match=r"task 'signs': 'head\.weight'"):
        fit(learner, LightningTask(tmp_path / "signs.safetensors", 3), tmp_path)


@pytest.mark.parametrize("count", [0, 2])
def test_a_module_without_one_model_is_refused(count, tmp_path):
    models = [MultiTaskModel(seeded(Tiny)) for _ in range(count)] or [nn.Linear(6, 3)]
    with pytest.raises(TaskStateError, match=rf"task 'signs': Learner has {count} "):
        fit(Learner(*models), LightningTask(tmp_path / "signs.safetensors", 3), tmp_path)


def test_a_folder_that_cannot_be_made_is_refused_before_the_task_is_started(tmp_path):
    (tmp_path / "file").touch()
    model = MultiTaskModel(seeded(Tiny))
    with pytest.raises(InputError, match="task 'signs'"):
        fit(Learner(model), LightningTask(tmp_path / "file" / "signs.safetensors", 3), tmp_path)
    assert model.training_task is None


def test_a_run_that_broke_off_goes_on_and_a_trial_run_writes_nothing(tmp_path):
    path = tmp_path / "signs.safetensors"
    model = MultiTaskModel(seeded(Tiny))
    learner, callback = Learner(model), LightningTask(path, 3)
    learner.fails_at = 3
    with pytest.raises(ZeroDivisionError):
        fit(learner, callback, tmp_path)
    assert model.training_task == "signs"
    assert callback.task is None
    learner.fails_at = -1
    head = model.backbone.head
    fit(learner, callback, tmp_path, fast_dev_run=True)
    assert model.backbone.head is head, "the task that was begun"
    assert callback.task is not None
    assert not path.exists()


def test_an_average_of_weights_is_refused_before_a_step(tmp_path):
    learner = Learner(MultiTaskModel(seeded(Tiny)))
    averaging = lightning.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=1e-2)
    with pytest.raises(TaskStateError, match="StochasticWeightAveraging"):
        fit(learner, LightningTask(tmp_path / "a.safetensors", 3), tmp_path, [averaging])
    assert learner.global_step == 0


def test_processes_whose_weights_come_back_are_refused_before_the_task_is_started(
    tmp_path, monkeypatch
):
    model = MultiTaskModel(seeded(Tiny))
    trainer = lightning.Trainer(strategy="ddp_spawn", accelerator="cpu", devices=1, logger=False)
    trainer.strategy._configure_launcher()
    monkeypatch.setattr(multiprocessing, "parent_process", object)  # as in one of its processes
    with pytest.raises(TaskStateError, match="strategy='ddp'"):
        LightningTask(tmp_path / "a.safetensors", 3).setup(trainer, Learner(model), "fit")
    assert model.training_task is None
