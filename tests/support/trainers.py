"""The Trainer of transformers on a tiny BERT, without downloads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_size=16,
        intermediate_size=32,
    )
    return transformers.BertForSequenceClassification(config)


def rows() -> list[dict[str, object]]:
    """Twelve texts of three classes."""
    words = torch.randint(2, 30, (12, 6), generator=torch.Generator().manual_seed(0))
    words[:, -1] = 1  # T5's end of sequence
    return [{"input_ids": w, "labels": i % 3, "note": "unused"} for i, w in enumerate(words)]


def trainer(
    model: nn.Module,
    folder: Path,
    optimizers: tuple[Any, Any],
    data: Sequence[Any] | None = None,
    callbacks: Sequence[Any] = (),
    **options: Any,
) -> transformers.Trainer:
    """A Trainer of two epochs of three steps."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        **{"save_strategy": "no", **options},
    )
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=rows() if data is None else data,
        eval_dataset=rows() if data is None else data,
        optimizers=optimizers,
        callbacks=list(callbacks),
    )
