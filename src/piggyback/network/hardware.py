"""What the hardware is made for, by its instructions: defaults must be the same on two machines of a kind."""

from __future__ import annotations

import torch

from piggyback.errors import InputError


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware has instructions for products of bfloat16; False where that is not known."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16"))


def check_device(device: str, what: str = "device") -> None:
    """Raise InputError unless ``device`` is the CPU or an accelerator of this machine."""
    here = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        count = torch.accelerator.device_count()
        here += [str(kind), *(f"{kind}:{index}" for index in range(count))]
    if device not in here:
        raise InputError(
            f"{what} {device!r}: expected one that is there ({', '.join(here)}); leave it out to choose by itself"
        )
