"""``piggyback inspect``: what a task file says about itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from piggyback.cli.options import JsonOption
from piggyback.cli.screen import grid, results, table, write_json
from piggyback.errors import InputError
from piggyback.kinds import score_name
from piggyback.names import human_bytes
from piggyback.taskfile.header import TaskHeader, read_header
from piggyback.texts.preprocessing import TextPreprocessing


def run(
    task: Annotated[Path, typer.Argument(metavar="FILE", help="A task file.")],
    layers: Annotated[
        bool, typer.Option("--layers/--no-layers", help="Show each masked layer.")
    ] = True,
    card: Annotated[
        bool, typer.Option("--card", help="Write a model card in Markdown instead.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show what is in a task file.

    Header, density, bits and codec of each layer, the backbone it needs, its
    provenance. No mask is decoded and no backbone is loaded.

    \b
    Examples:
      piggyback inspect tasks/signs.safetensors
      piggyback inspect tasks/signs.safetensors --json
      piggyback inspect tasks/signs.safetensors --card > signs.md
    """
    if json and card:
        raise InputError("--json and --card: expected one of the two")
    header = read_header(task)
    if json:
        write_json(_as_json(header))
    elif card:
        from piggyback.lab.tables.card import task_card

        typer.echo(task_card(header), nl=False)
    else:
        _show(header, layers)


def _as_json(header: TaskHeader) -> dict[str, Any]:
    info = header.info
    return {
        "name": header.name,
        "version": header.version,
        "kind": info.kind,
        "classes": list(info.classes),
        **{
            key: list(value)
            for key in ("units", "thresholds", "scaling", "calibration")
            if (value := getattr(info, key))
        },
        "head": info.head_kind,
        "rule": asdict(info.rule),
        "preprocessing": None if info.preprocessing is None else info.preprocessing.to_json(),
        "backbone": {"source": info.backbone.source, "fingerprint": info.backbone.fingerprint},
        "weights": header.weights,
        "density": header.density,
        "bits_per_weight": header.bits_per_weight if header.weights else None,
        "bytes": {
            part: getattr(header, f"bytes_{part}")
            for part in ("total", "masks", "form", "head", "norm", "header")
        },
        "layers": [
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "density": layer.density,
                "bits_per_weight": layer.bits / layer.numel if layer.numel else 0.0,
                "codec": layer.codec,
            }
            for layer in header.layers
        ],
        "provenance": dict(info.provenance),
    }


def _show(header: TaskHeader, layers: bool) -> None:
    screen = results()
    screen.print(grid(facts(header)))
    if not layers or not header.layers:
        return
    by_layer = table("+layer", ">shape", ">kept (%)", ">bits", "codec")
    for layer in header.layers:
        by_layer.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            f"{100 * layer.density:.2f}",
            f"{layer.bits / layer.numel if layer.numel else 0:.3f}",
            layer.codec,
        )
    screen.print(by_layer)


def facts(header: TaskHeader) -> dict[str, str]:
    """Return the header's facts as words, by name."""
    info = header.info
    many = f", ... {info.classes[-1]}" if len(info.classes) > 6 else ""
    names = info.classes[:6]
    if info.units:
        units = zip(names, info.units, strict=False)
        names = tuple([f"{name} ({unit})" if unit else name for name, unit in units])
    found = {
        "task": f"{header.name} ({info.kind}, format {header.version})",
        "classes": f"{len(info.classes)}: {', '.join(names)}{many}",
        "backbone": info.backbone.source or "not named",
        "fingerprint": info.backbone.fingerprint,
    }
    if info.preprocessing is not None:
        seen = info.preprocessing
        if isinstance(seen, TextPreprocessing):
            found["texts"] = f"at most {seen.max_length} tokens, {seen.family}"
            found["tokenizer"] = seen.tokenizer
        else:
            found["images"] = f"{seen.image_size} x {seen.image_size} pixels, {seen.interpolation}"
    form = "" if info.rule.form == "plain" else f"{info.rule.form} form, "
    if header.layers:
        found["masks"] = (
            f"{info.rule.kind}, {form}{header.weights:,} weights in {len(header.layers)} layers, "
            f"{100 * header.density:.2f}% kept, {header.bits_per_weight:.3f} bits per weight"
        )
    else:
        found["masks"] = "none: the backbone's weights as they are"
    found["bytes"] = (
        f"{header.bytes_total:,}: masks {human_bytes(header.bytes_masks)}, "
        f"{f'coefficients {human_bytes(header.bytes_form)}, ' if form else ''}"
        f"head {human_bytes(header.bytes_head)}, "
        f"normalisation {human_bytes(header.bytes_norm)}, rest {human_bytes(header.bytes_header)}"
    )
    if isinstance(note := info.provenance.get("fitted"), str):
        found["confidence"] = note
    for key, label in (("val_accuracy", "val"), ("test_accuracy", "test")):
        if isinstance(value := info.provenance.get(key), (int, float)):
            measure = "" if info.kind == "classification" else f" {score_name(info.kind)}"
            found[label] = f"{value:.2f}%{measure}"
    return found
