"""Small networks, their inputs, and a quick way to learn a task on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.rule import MaskRule, ScoreInit
from piggyback.model.multitask import MultiTaskModel
from piggyback.taskfile.task import Task


class Convolutions(nn.Module):
    """Plain, grouped, depthwise and transposed convolutions, batch norm, dropout, nested modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.ModuleDict(
            {
                "grouped": nn.Conv2d(8, 8, 3, groups=2, bias=False),
                "depthwise": nn.Conv2d(8, 8, 3, groups=8),
                "up": nn.ConvTranspose2d(8, 6, 2, stride=2),
                "norm": nn.BatchNorm2d(6),
            }
        )
        self.neck = nn.Linear(6, 12)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.body["depthwise"](self.body["grouped"](self.stem(x)).relu()).relu()
        x = self.body["norm"](self.body["up"](x)).relu().mean((2, 3))
        return self.fc(self.drop(self.neck(x).relu())) * scale


class Attention(nn.Module):
    """Embeddings, one of them tied to an output layer, and attention with its packed ``in_proj_weight``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, 8)
        self.position = nn.Embedding(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.tied = nn.Linear(8, 17, bias=False)
        self.tied.weight = self.embed.weight
        self.head = nn.Linear(17, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(self.tied(x).mean(1))


class Tiny(nn.Module):
    """Two linear layers: for many calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


@dataclass(frozen=True)
class Case:
    """A network, its input, and what of it is masked."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    select: object
    masked: tuple[str, ...]


CASES = {
    "convolutions": Case(
        Convolutions,
        lambda: torch.randn(4, 3, 8, 8),
        None,
        (
            "stem.0.weight",
            "body.grouped.weight",
            "body.depthwise.weight",
            "body.up.weight",
            "neck.weight",
        ),
    ),
    "attention": Case(
        Attention,
        lambda: torch.randint(0, 17, (4, 6)),
        ["embed", "position", "attention"],
        (
            "embed.weight",
            "position.weight",
            "attention.in_proj_weight",
            "attention.out_proj.weight",
        ),
    ),
    "tiny": Case(Tiny, lambda: torch.randn(4, 6), None, ("body.weight",)),
}


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network that is the same for the same seed, in eval mode, its batch norm with some past."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = make()
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
                layer.num_batches_tracked.fill_(7)
    return net.eval()


def learn(
    model: MultiTaskModel,
    name: str,
    inputs: Tensor,
    classes: int = 3,
    *,
    finish: bool = True,
    rule: MaskRule | None = None,
    **options: object,
) -> Task:
    """Train a task for a few steps and return it; about three quarters of the weights are masked out."""
    model.start_task(name, classes, rule=rule, **options)
    model.train()
    groups = model.parameter_groups(lr=1e-3, head_lr=1e-2)
    eps = 1e-3 if inputs.dtype == torch.float16 else 1e-8  # Adam's own is 0 in half precision
    optimizer = MaskOptimizer(
        groups,
        base=model.base_of,
        rule=rule,
        init=ScoreInit("uniform", seed=len(model.task_names)),
        eps=eps,
    )
    optimizer.initialize()
    labels = torch.arange(len(inputs)) % classes
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs).float(), labels).backward()
        optimizer.step()
    model.eval()
    return model.finish_task() if finish else model.capture()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all of a module's tensors."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def assert_same_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Every tensor is there, and the same to the bit, -0.0 and NaN included."""
    found = module.state_dict()
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype, name
        assert same_bits(found[name], tensor), name


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """The same names, and equal values under each."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal in dtype, shape and every bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    parts = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return torch.equal(*parts)
