"""Memory of training, by method and inner optimizer: what is held after a step, and the most that a step takes.

    python -m benchmarks.training_memory            # a table for docs/BENCHMARKS.md

All tensors count that a side brings into being, its copy of the network included, those inside of fused operations not.
"""

from __future__ import annotations

import argparse
import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measure import Settings, machine
from benchmarks.networks import CLASSES, Side, batch, finetune_side, masks_side

MIB = 2**20


class Peak(TorchDispatchMode):
    """Counts the bytes of all storages that operations make in a ``with`` block: ``now``, and at ``most``."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it returns that it was not given."""
        self._seen.update(map(_storage, _tensors((args, kwargs))))
        output = func(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            if (storage := _storage(tensor)) not in self._seen:
                self._seen.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return output

    def _change(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def lora_side(backbone: nn.Module, names: list[str], rank: int = 8) -> Side:
    """Return peft's low-rank adapters in training beside the frozen layers of these names."""
    from peft import LoraConfig, get_peft_model

    net = copy.deepcopy(backbone).train()
    net.reset_classifier(CLASSES)  # timm's
    net = get_peft_model(net, LoraConfig(r=rank, target_modules=names, modules_to_save=["head"]))
    trained = [param for param in net.parameters() if param.requires_grad]
    return Side(net, torch.optim.Adam(trained, lr=1e-4))


def sides(backbone: nn.Module, names: list[str]) -> Iterator[tuple[str, str, Callable[[], Side]]]:
    """Yield each method's name, that of its optimizer, and how to make it."""
    from transformers import Adafactor

    low = copy.deepcopy(backbone).bfloat16()
    fixed = {"scale_parameter": False, "relative_step": False}
    yield "fine-tuning", "Adam", lambda: finetune_side(backbone)
    yield "LoRA, rank 8", "Adam", lambda: lora_side(backbone, names)
    for network, what in ((backbone, "masks"), (low, "masks, backbone in bfloat16")):
        for name, inner, options in (
            ("Adam", torch.optim.Adam, {}),
            ("RMSprop", torch.optim.RMSprop, {}),
            ("Adafactor", Adafactor, fixed),
        ):
            yield what, name, lambda n=network, i=inner, o=options: masks_side(n, i, **o)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs")
    settings = Settings(quick=parser.parse_args(argv).quick)
    name = "test_vit" if settings.quick else "vit_small_patch16_224"
    torch.manual_seed(0)
    backbone = timm.create_model(name).eval()
    backbone.reset_classifier(CLASSES)
    layers = {n: m for n, m in backbone.blocks.named_modules() if isinstance(m, nn.Linear)}
    weights = sum(layer.weight.numel() for layer in layers.values())
    x, y = batch(settings, 8, 224)
    if settings.quick:
        x = torch.randn(2, 3, 160, 160)
    print(", ".join(f"{key} {value}" for key, value in machine(settings).items()) + ".\n")
    print(f"{name}, {weights:,} weights in its blocks' linear layers, batch of {len(x)}.\n")
    print("| method | optimizer | bytes a weight | held MiB | peak MiB |\n|---|---|---|---|---|")
    for method, optimizer, make in sides(backbone, [f"blocks.{n}" for n in layers]):
        gc.collect()
        with Peak() as peak:
            side = make()
            dtype = next(side.network.parameters()).dtype
            for _ in range(2):  # state is made in the first
                peak.most = peak.now
                side.step(x.to(dtype), y)
            gc.collect()
            held, most = peak.now, peak.most
        del side
        print(
            f"| {method} | {optimizer} | {held / weights:.1f} | {held / MIB:.0f} | {most / MIB:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
