"""MaskOptimizer in other people's loops: stopped and resumed from their checkpoints, compiled."""

from __future__ import annotations

import lightning
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader, TensorDataset

from piggyback.masks.optimizer import MaskOptimizer
from piggyback.model.multitask import MultiTaskModel
from support.nets import assert_same_state, same_weights, state_of

EPOCHS = 4


def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(32) % 3
    return TensorDataset(
        torch.randn(32, 3, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1), labels
    )


def network(outputs: int = 10) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, outputs)).eval()


def started(backbone: nn.Module, norm="trained") -> tuple[MultiTaskModel, MaskOptimizer]:
    torch.manual_seed(0)
    model = MultiTaskModel(backbone)
    model.start_task("signs", classes=3, norm=norm)
    groups = model.parameter_groups(lr=5e-3, head_lr=1e-2)
    return model, MaskOptimizer(groups, base=model.base_of)


@pytest.fixture
def accelerate_undone():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Learner(lightning.LightningModule):
    def __init__(self, norm="trained"):
        super().__init__()
        self.model, self.made = started(network(), norm)
        self.modes: list[bool] = []

    def training_step(self, batch, index):
        self.modes.append(self.model.backbone[1].training)
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return [self.made], [torch.optim.lr_scheduler.ExponentialLR(self.made, 0.9)]


def fit_lightning(learner, epochs, folder, checkpoint=None):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(
        learner, DataLoader(images(), batch_size=8), ckpt_path=checkpoint, weights_only=True
    )
    return trainer


def test_lightning_resumes_to_the_same_bits(tmp_path):
    whole, first, second = Learner(), Learner(), Learner()
    fit_lightning(whole, EPOCHS, tmp_path)
    fit_lightning(first, EPOCHS // 2, tmp_path).save_checkpoint(tmp_path / "half.ckpt")
    fit_lightning(second, EPOCHS, tmp_path, tmp_path / "half.ckpt")
    assert same_weights(whole.model, second.model)
    assert 0 < second.model.finish_task().density < 1


@pytest.mark.parametrize(("norm", "mode"), [("frozen", False), ("trained", True)])
def test_lightning_leaves_the_batch_norm_policy_alone(norm, mode, tmp_path):
    learner = Learner(norm).train()  # Lightning itself keeps modes as it finds them
    fit_lightning(learner, 1, tmp_path)
    assert set(learner.modes) == {mode}


def fit_accelerate(accelerator, live, optimizer, loader, epochs):
    live.train()
    for _ in range(epochs):
        for inputs, labels in loader:
            with accelerator.accumulate(live):
                accelerator.backward(nn.functional.cross_entropy(live(inputs), labels))
                accelerator.clip_grad_norm_(live.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_resumes_to_the_same_bits(precision, tmp_path, accelerate_undone):
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    whole, optimizer = started(network())
    loader = DataLoader(images(), batch_size=8)
    prepared = accelerator.prepare(whole, optimizer, loader)
    fit_accelerate(accelerator, *prepared, EPOCHS // 2)
    accelerator.save_state(str(tmp_path))
    fit_accelerate(accelerator, *prepared, EPOCHS // 2)
    after = state_of(whole)
    accelerator.load_state(str(tmp_path))
    assert not torch.equal(whole.backbone[0].weight, after["backbone.0.weight"])
    fit_accelerate(accelerator, *prepared, EPOCHS // 2)
    assert_same_state(whole, after)
    assert 0 < whole.finish_task().density < 1


def test_steps_and_switches_of_a_compiled_backbone_compile_nothing_new():
    compiled = CompileCounter()
    torch._dynamo.reset()
    model = MultiTaskModel(network())
    model.backbone.compile(backend=compiled)
    inputs, labels = images().tensors
    for name in ("signs", "letters"):
        model.start_task(name, classes=3)
        optimizer = MaskOptimizer(model.parameter_groups(lr=5e-3), base=model.base_of)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        model.finish_task()
    assert compiled.frame_count == 1
    with torch.no_grad():
        for name in ("signs", "letters", "signs"):
            assert torch.equal(model(inputs, task=name), model.bake(name)(inputs))
    torch._dynamo.reset()
    assert compiled.frame_count == 2, "one more for calls without gradients"
