"""The network that a run has made, ready to be asked, whatever its method."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from torch import nn

from piggyback.errors import CheckpointError, InputError
from piggyback.model.heads import new_head
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.backbone import Backbone
from piggyback.network.frozen import replace_module
from piggyback.train.result import RESULT, TrainResult, finished


def network_of(backbone: Backbone, result: TrainResult) -> nn.Module:
    """Return a plain network, in evaluation mode, with what a run has learned on ``backbone``.

    The backbone's module stays as it is. Raises BackboneMismatchError for a task of other weights,
    InputError for a method that leaves neither a task nor all weights.
    """
    module = copy.deepcopy(backbone.module)
    if result.task is not None:
        model = MultiTaskModel(module, head=backbone.head, source=backbone.source)
        model.add_task(result.task)
        model.set_task(result.name)
        return module.eval()
    if result.state is None or result.method != "finetune":
        raise InputError(
            f"run {result.name!r} of method {result.method!r}: expected masks, head or finetune"
        )
    bias = [t for name, t in result.state.items() if name.startswith(f"{backbone.head}.")][-1]
    with torch.random.fork_rng(devices=[]):  # its values are overwritten
        head = new_head(module.get_submodule(backbone.head), len(bias))
    replace_module(module, backbone.head, head)
    module.load_state_dict(dict(result.state))
    return module.eval()


def result_in(folder: Path) -> TrainResult:
    """Return the result of the run that ended in ``folder``; raises CheckpointError where none did."""
    place = folder / RESULT
    try:
        identity = json.loads(place.read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"run folder {str(folder)!r}: its {RESULT} cannot be read ({error!r}); "
            "expected a run that has ended"
        ) from error
    result = finished(folder, identity)
    if result is None:
        raise CheckpointError(f"run folder {str(folder)!r}: no run has ended there")
    return result
