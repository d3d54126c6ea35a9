"""LoRA through PEFT, the comparison that users would pick today: the method ``lora`` and its file."""

from piggyback.lab.lora.learner import load_lora

__all__ = ["load_lora"]
