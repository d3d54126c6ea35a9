"""LoRA through PEFT, the comparison that users would pick today: the method ``lora`` and its file."""

from piggyback.training.lora import learner as learner  # registers the method
from piggyback.training.lora.file import load_lora

__all__ = ["load_lora"]
