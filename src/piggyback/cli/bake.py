"""``piggyback bake``: a task as a plain model that needs nothing of this library."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piggyback.cli.computing import DeviceOption, ThreadsOption, compute_with
from piggyback.cli.options import CheckpointOption, HeadOption, OtherBackboneOption
from piggyback.cli.screen import results
from piggyback.errors import InputError, PiggybackError, require
from piggyback.images.preprocessing import Preprocessing
from piggyback.kinds import KINDS, kind_of
from piggyback.taskfile.disk import check_output
from piggyback.taskfile.header import keep_task, read_header
from piggyback.taskfile.task import OWN
from piggyback.texts.preprocessing import TextPreprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from piggyback.taskfile.header import TaskHeader

TOLERANCE = 1e-3
"""Largest difference of a logit between ONNX Runtime and torch, of logits around 1 to 10."""
OPSET = 20


class ExportError(PiggybackError):
    """An exported model that does not compute what the live one does."""


def run(
    task: Annotated[Path, typer.Argument(metavar="FILE", help="A task file.")],
    to: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="What to write: NAME.safetensors or NAME.onnx; for a text task also a folder.",
        ),
    ],
    backbone: OtherBackboneOption = None,
    checkpoint: CheckpointOption = None,
    head: HeadOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
) -> None:
    """Write a task as a plain model: a state dict, ONNX, or a folder for transformers.

    The masked weights, the head and the normalisation are written into the backbone's
    own tensors. ONNX takes images (batch, 3, side, side), prepared as the metadata
    says, and is checked against the live model with ONNX Runtime. Of a text task it
    takes tokens (batch, length). A folder of a text task has its tokenizer and class
    names: transformers.pipeline(model=FOLDER, trust_remote_code=True) answers; for a
    token task it holds a token classifier, without trust_remote_code. A regression's
    scaling is in ONNX and in a folder; of a state dict it is in the metadata alone.

    \b
    Examples:
      piggyback bake tasks/signs.safetensors --to signs-model.safetensors
      piggyback bake tasks/signs.safetensors --to signs.onnx
      piggyback bake tasks/mood.safetensors --to mood-pipeline
    """
    compute_with(threads, device)
    if to.suffix not in ("", ".safetensors", ".onnx"):
        raise InputError(
            f"--to {str(to)!r}: expected a name ending in .safetensors or .onnx, or a folder's"
        )
    check_output(to, "--to", folder=not to.suffix)
    header = read_header(task)
    info = header.info
    if info.kind == OWN and to.suffix != ".safetensors":
        raise InputError(
            f"--to {str(to)!r}: task {task.stem!r} answers as the backbone does, with no classes to export: expected a "
            "name ending in .safetensors"
        )
    if not to.suffix and not isinstance(info.preprocessing, TextPreprocessing):
        raise InputError(
            f"--to {str(to)!r}: a folder is for text tasks; expected a name ending in .safetensors or .onnx"
        )
    keep_task(to, "--to")
    if to.suffix == ".onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require(module, "onnx")

    from safetensors.torch import save

    from piggyback.cli.loading import load_tasks
    from piggyback.taskfile.disk import write_file

    model = load_tasks([task], backbone, checkpoint, head)
    baked = model.bake(header.name).cpu().eval()
    if not to.suffix:
        from piggyback.zoo.pipeline import save_pipeline

        made = save_pipeline(baked, model.get_task(header.name).info, to)
        size = sum(file.stat().st_size for file in made)
        results().print(f"wrote {to}: {len(made)} files, {size:,} bytes", soft_wrap=True)
        return
    if to.suffix == ".onnx" and info.kind in KINDS:
        baked = kind_of(info).finished(baked).eval()
    if to.suffix == ".safetensors":
        state = {name: tensor.detach().clone() for name, tensor in baked.state_dict().items()}
        data, found = save(state, _metadata(header)), f"{len(state)} tensors, "
    else:
        data, difference = to_onnx(baked, header)
        found = f"largest difference from the live model {difference:.2g}, "
    write_file(to, data)
    results().print(f"wrote {to}: {found}{len(data):,} bytes", soft_wrap=True)


def to_onnx(baked: nn.Module, header: TaskHeader) -> tuple[bytes, float]:
    """Return ``baked`` as ONNX for any batch size, and the largest difference of a logit.

    Raises ExportError where it exceeds ``TOLERANCE`` times the largest logit.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    prepared, batch = header.info.preprocessing or Preprocessing(), torch.export.Dim("batch", min=1)
    dynamic = {0: batch}
    if isinstance(prepared, TextPreprocessing):
        name, length = "tokens", min(12, prepared.max_length)
        first = prepared.pad + 1
        images = torch.randint(first, first + 8, (2, length), generator=generator)
        images[1, length // 2 :] = prepared.pad
        dynamic[1] = torch.export.Dim("length", min=3, max=prepared.max_length)
    else:
        name, side = "images", prepared.image_size
        images = torch.randn(2, 3, side, side, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes on its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            baked,
            (images,),
            dynamo=True,
            dynamic_shapes=(dynamic,),
            input_names=[name],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"task {header.name!r}: torch exported nothing")
    proto: Any = program.model_proto
    for key, value in _metadata(header).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    data: bytes = proto.SerializeToString()
    with torch.inference_mode():
        return data, _difference(baked, data, images, header)


def _difference(baked: nn.Module, data: bytes, images: Tensor, header: TaskHeader) -> float:
    """The largest difference over batches of two sizes."""
    runtime = require("onnxruntime", "onnx")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    worst = 0.0
    for x in (images, images[:1], images[[0, 1, 0]]):
        wanted = baked(x)
        found = wanted.new_tensor(
            session.run(["logits"], {session.get_inputs()[0].name: x.numpy()})[0]
        )
        worst = max(worst, float((found - wanted).abs().max()))
        if worst > TOLERANCE * max(1.0, float(wanted.abs().max())):
            raise ExportError(
                f"task {header.name!r}: the ONNX model's logits differ by {worst:.2g} from the "
                f"live model's: expected at most {TOLERANCE:g} of the largest; nothing was written"
            )
    return worst


def _metadata(header: TaskHeader) -> dict[str, str]:
    """What whoever runs the model must know."""
    values: dict[str, str] = {
        "task": header.name,
        "kind": header.info.kind,
        "classes": json.dumps(list(header.info.classes)),
        "backbone": header.info.backbone.source,
    }
    for key in ("units", "thresholds", "scaling", "calibration"):
        if found := getattr(header.info, key):
            values[key] = json.dumps(found)
    if header.info.preprocessing is not None:
        values["preprocessing"] = json.dumps(header.info.preprocessing.to_json())
    return values
