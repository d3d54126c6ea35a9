"""Networks and tasks for the torch part of serving, and what each task's outputs should be."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from piggyback.images.preprocessing import Preprocessing
from piggyback.masks.bits import pack_mask
from piggyback.masks.rule import MaskRule
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.backbone import Backbone
from piggyback.taskfile.task import Task, TaskInfo

SIDE = 16


class Blocks(nn.Module):
    """Convolutions with and without bias, 1x1, grouped and depthwise, with batch norm, and one without."""

    def __init__(self, head: str = "linear") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8, eps=1e-3)
        self.wide = nn.Conv2d(8, 16, 1)
        self.bn2 = nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, groups=16, bias=False)
        self.bn3 = nn.BatchNorm2d(16, affine=False)
        self.bare = nn.Conv2d(16, 12, 1)
        self.neck = nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.fc: nn.Module = nn.Linear(12, 10) if head == "linear" else nn.Conv2d(12, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.stem(x)).relu()
        x = x + self.bn2(self.wide(x))[:, :8]
        x = self.bn3(self.depth(self.bn2_again(x))).relu()
        x = self.norm(self.neck(self.bare(x).mean((2, 3))))
        if isinstance(self.fc, nn.Conv2d):
            return self.fc(x[:, :, None, None]).flatten(1)
        return self.fc(x)

    def bn2_again(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], 1)


def backbone(module: nn.Module, head: str = "fc", seed: int = 0) -> Backbone:
    """``module`` with random statistics, as a backbone for images of ``SIDE`` pixels."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.3, 2.0, generator=generator)
            if layer.affine:
                nn.init.uniform_(layer.weight, -1.5, 1.5, generator=generator)
                nn.init.normal_(layer.bias, 0, 0.2, generator=generator)
    return Backbone(module.eval(), "toy", Preprocessing(SIDE), head)


def random_task(
    made: Backbone | nn.Module,
    seed: int,
    rule: MaskRule | None = None,
    norm: str = "frozen",
    classes: int = 3,
    select: object = None,
) -> Task:
    """A task with random masks, head and coefficients, and with ``norm`` as ``start_task`` takes it."""
    rule, generator = rule or MaskRule(), torch.Generator().manual_seed(seed)
    model = MultiTaskModel(copy.deepcopy(made), select=select)
    frozen = model._frozen
    masks, coefficients, norms = {}, {}, {}
    for name in frozen.masked_names:
        shape = frozen.shapes()[name]
        drawn = torch.rand(shape, generator=generator)
        mask = drawn < 0.7
        if rule.kind == "ternary":
            mask = mask.to(torch.int8) - 2 * (drawn < 0.2).to(torch.int8)
        masks[name] = pack_mask(mask)
        if rule.form == "channel":
            coefficients[name] = 0.5 + torch.rand(shape[:1], generator=generator)
        if rule.form == "affine":
            coefficients[name] = torch.tensor([0.1, 0.02, -0.03, 0.9])
    for name, tensor in frozen.norms().items():
        learned = name.endswith(("weight", "bias"))
        if norm == "trained" or (norm == "affine" and learned):
            norms[name] = tensor + 0.3 * torch.rand(tensor.shape, generator=generator)
    head = frozen.head
    weight = torch.randn(classes, *head.weight.shape[1:], generator=generator)
    info = TaskInfo(
        classes=tuple(f"{seed}-{k}" for k in range(classes)),
        rule=rule,
        head_kind="linear" if isinstance(head, nn.Linear) else "conv",
    )
    tensors = {"weight": weight, "bias": torch.randn(classes, generator=generator)}
    return Task(f"task{seed}", masks, tensors, norms, info, coefficients)


class Twin:
    """The same task on the readable model, in float32."""

    def __init__(self, made: Backbone | nn.Module) -> None:
        self.model = MultiTaskModel(copy.deepcopy(made))

    @torch.no_grad()
    def __call__(self, task: Task, x: Tensor) -> Tensor:
        if task.name not in self.model.task_names:
            self.model.add_task(task)
        return self.model(x, task=task.name)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether outputs are equal but for rounding."""
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())
