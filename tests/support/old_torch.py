"""Files as torch 0.2 under Python 2 wrote them, byte for byte in its layout: what the published files are."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_KINDS = {torch.uint8: "Byte", torch.float32: "Float", torch.int64: "Long"}


def save_old(value: Any, path: Path, *, cuda: bool = False) -> None:
    """Write ``value`` (dicts, lists, numbers, texts, tensors, nn.Linear); float tensors as if they lay on a GPU."""
    writer = _Writer(cuda)
    body = b"\x80\x02" + writer.emit(value) + b"."
    keys = b"\x80\x02](" + b"".join(map(_text, writer.storages)) + b"e."
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    with path.open("wb") as file:
        file.write(b"".join([*head, body, keys]))
        for tensor in writer.storages.values():
            file.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())


class _Writer:
    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.storages: dict[str, Tensor] = {}

    def emit(self, value: Any) -> bytes:
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.emit, value)) + b"t"
        if isinstance(value, list):
            return b"](" + b"".join(map(self.emit, value)) + b"e"
        if isinstance(value, OrderedDict):
            pairs = self.emit([list(pair) for pair in value.items()])
            return b"ccollections\nOrderedDict\n" + pairs + b"\x85R"
        if isinstance(value, dict):
            return b"}(" + b"".join(self.emit(x) for pair in value.items() for x in pair) + b"u"
        if isinstance(value, nn.Parameter):
            state = self.emit((True, False, OrderedDict()))
            data = self.emit(value.detach())
            return b"ctorch.nn.parameter\nParameter\n" + data + b"\x85R" + state + b"b"
        if isinstance(value, Tensor):
            return self._tensor(value)
        return self._linear(value)

    def _tensor(self, tensor: Tensor) -> bytes:
        flat = tensor.contiguous().view(-1)
        key = str(94000 + len(self.storages))
        self.storages[key] = flat
        on_gpu = self.cuda and tensor.dtype == torch.float32
        name = f"ctorch{'.cuda' if on_gpu else ''}\n{_KINDS[tensor.dtype]}Storage\n".encode()
        rest = (key, "cuda:0" if on_gpu else "cpu", len(flat), None)
        storage = b"(" + _text("storage") + name + b"".join(map(self.emit, rest)) + b"tQ"
        sizes = (0, tuple(tensor.shape), tensor.contiguous().stride())
        return (
            b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"".join(map(self.emit, sizes)) + b"tR"
        )

    def _linear(self, layer: nn.Linear) -> bytes:
        name = b"ctorch.nn.modules.linear\nLinear\n"
        source = self.emit("linear.py") + self.emit("class Linear(Module):\n    # caf\xe9\n")
        found = b"(" + _text("module") + name + source + b"tQ"
        empty = ("_buffers", "_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_modules")
        params = OrderedDict(weight=layer.weight, bias=layer.bias)
        parts = {"training": False, "_parameters": params, **{k: OrderedDict() for k in empty}}
        parts |= {"in_features": layer.in_features, "out_features": layer.out_features}
        backend = b"ctorch.nn.backends.thnn\n_get_thnn_function_backend\n)R"
        state = self.emit(parts) + _text("_backend") + backend + b"s"
        return found + b")\x81" + state + b"b"


def _text(value: str) -> bytes:
    data = value.encode("latin1")
    return b"U" + bytes([len(data)]) + data
