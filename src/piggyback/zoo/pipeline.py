"""A text task as a folder that ``transformers.pipeline`` reads: configuration, weights, tokenizer.

A classifier of transformers' own stays one, and an encoder that answers for every token becomes one. The mean over an
encoder's tokens is none of its classes: that folder brings the lines in ``MODELING`` along, which transformers runs if
told to (``trust_remote_code=True``). Its type of model is one that transformers does not know: a known one would be
loaded without those lines, and with a random classifier.
"""

from __future__ import annotations

import copy
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from piggyback.errors import BackboneError, InputError, PiggybackError, first_line, require
from piggyback.network.head import find_head
from piggyback.network.text import TextEncoder, TokenHead
from piggyback.taskfile.task import TaskInfo
from piggyback.texts.preprocessing import TextPreprocessing

MODELING = '''"""A classifier on the mean over a text's tokens; written by torch-piggyback."""

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPooledConfig(PretrainedConfig):
    model_type = "piggyback"


class MeanPooledClassifier(PreTrainedModel):
    config_class = MeanPooledConfig

    def __init__(self, config):
        super().__init__(config)
        body = AutoConfig.for_model(**config.body)
        self.body = AutoModel.from_config(body, **config.body_options)
        self.head = torch.nn.Linear(body.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **unused):
        there = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.body(input_ids=input_ids, attention_mask=there)[0]
        weights = there.to(states.dtype).unsqueeze(-1)
        pooled = (states * weights).sum(1) / weights.sum(1).clamp_min(1)
        return SequenceClassifierOutput(logits=self.head(pooled))
'''
_PROBLEMS = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


def save_pipeline(baked: nn.Module, info: TaskInfo, folder: Path) -> list[Path]:
    """Write a baked text task into a new folder and return its files; ``info`` as the model holds it.

    Raises InputError for a task on images, and where the folder is there already with something in it; BackboneError
    for tags of an encoder of which transformers has no token classifier, and for numbers of one without a last bias.
    """
    prepared = info.preprocessing
    if not isinstance(prepared, TextPreprocessing):
        raise InputError(
            "a task on images: expected one on texts; bake it to NAME.safetensors or NAME.onnx"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"folder {str(folder)!r} is not empty: choose another name")
    if isinstance(baked, TextEncoder) and isinstance(baked.head, TokenHead):
        baked = _token_classifier(baked, len(info.classes))
    inner = baked.body if isinstance(baked, TextEncoder) else baked
    config: Any = copy.deepcopy(inner.config)
    if isinstance(baked, TextEncoder):
        transformers = require("transformers", "text")
        config = transformers.PretrainedConfig(body=config.to_dict())
    config.id2label = dict(enumerate(info.classes))
    config.label2id = {name: at for at, name in enumerate(info.classes)}
    config.problem_type = _PROBLEMS.get(info.kind)
    if info.thresholds:  # which the pipeline does not apply
        config.thresholds = dict(zip(info.classes, info.thresholds, strict=True))
    if isinstance(baked, TextEncoder):
        pooled = hasattr(inner, "pooler")
        config.body_options = {"add_pooling_layer": False} if pooled else {}
        config.architectures = ["MeanPooledClassifier"]
        config.auto_map = {
            "AutoConfig": "modeling_piggyback.MeanPooledConfig",
            "AutoModelForSequenceClassification": "modeling_piggyback.MeanPooledClassifier",
        }
    else:
        config.architectures = [type(baked).__name__]
    made = folder.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        _write(made, baked, config, prepared, _folded(baked, info))
        made.replace(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return sorted(folder.iterdir())


def _folded(baked: nn.Module, info: TaskInfo) -> dict[str, Tensor]:
    """The tensors, with a regression's scaling, or a classification's temperature, in those of the last layer."""
    state = {name: tensor.detach().clone() for name, tensor in baked.state_dict().items()}
    if info.scaling or info.calibration:
        name = find_head(baked)
        offset, scale = torch.tensor(info.scaling or ((0.0, 1 / info.calibration[0]),)).T
        state[f"{name}.weight"] *= scale[:, None]
        if f"{name}.bias" in state:
            state[f"{name}.bias"] = state[f"{name}.bias"] * scale + offset
        elif info.scaling:
            raise BackboneError(
                f"the last layer, {name!r}, has no bias to hold the numbers' offsets: bake to NAME.onnx"
            )
    return state


def _write(
    folder: Path,
    baked: nn.Module,
    config: Any,
    prepared: TextPreprocessing,
    state: dict[str, Tensor],
) -> None:
    folder.mkdir(parents=True)
    if isinstance(baked, TextEncoder):
        (folder / "modeling_piggyback.py").write_text(MODELING, encoding="utf-8")
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    reader = copy.deepcopy(prepared.bound_reader())
    reader.inner.model_max_length = prepared.max_length
    reader.inner.save_pretrained(folder)


def _token_classifier(encoder: TextEncoder, tags: int) -> nn.Module:
    """The same network as transformers' own token classifier of that architecture."""
    transformers = require("transformers", "text")
    body: Any = encoder.body
    config = copy.deepcopy(body.config)
    config.num_labels = tags
    try:
        made: Any = transformers.AutoModelForTokenClassification.from_config(config)
        made.get_submodule(made.base_model_prefix).load_state_dict(body.state_dict())
        made.get_submodule(find_head(made)).load_state_dict(encoder.head.state_dict())
    except (ValueError, RuntimeError, PiggybackError) as error:
        raise BackboneError(
            f"an encoder of type {config.model_type!r}: transformers has no token classifier like it "
            f"({first_line(error)}); bake to NAME.safetensors or NAME.onnx"
        ) from error
    done: nn.Module = made.eval()
    return done
