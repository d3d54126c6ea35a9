"""Which weights are masked: from a name, a pattern, a type or a function to parameters."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TypeAlias, Union

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from piggyback.errors import PiggybackWarning, SelectionError, near_misses
from piggyback.network.head import CONVOLUTIONS
from piggyback.network.norm import norm_modules

Selection: TypeAlias = Union[
    str, "type[nn.Module]", Callable[[str, nn.Parameter], bool], "Iterable[Selection]", None
]
"""What ``select_weights`` takes."""

MUCH = 0.2
"""The share of the weights from which on it is said that the default selection leaves them out."""
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
MASKABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def select_weights(
    module: nn.Module, select: Selection = None, head: str | None = None
) -> dict[str, nn.Parameter]:
    """Return the parameters to mask by name, in the order of ``module.named_parameters()``.

    A *layer weight* is the weight of a convolution, a linear layer, attention's input
    projections, the experts of a mixture in one tensor of three dimensions, or an embedding. Of a weight that is
    computed, by ``weight_norm``, a parametrization or pruning, it is the parameter of its shape that it is made from.
    ``head`` names the classifier (see ``find_head``), which is trained per task and never masked;
    None: there is none.

    ============================  ===============================================================
    ``select``                    what is masked
    ============================  ===============================================================
    ``None``                      every layer weight but embeddings
    ``"layer4.*.weight"``         layer weights whose name matches; ``*`` matches dots as well
    ``"layer4"``, ``"blocks.1?"`` layer weights below the modules of that name
    ``"re:layer[34]"``            layer weights in whose name the regular expression is found
    ``"bn1.bias"``                the parameter of that full name, be it a bias
    ``nn.Conv2d``                 layer weights of all modules of that type and of what they hold
    ``lambda name, p: p.ndim>1``  every parameter outside the head for which it is true
    a list of these               all of them together
    ============================  ===============================================================

    A tied weight is there once, under the name ``named_parameters()`` gives it, whichever name
    selected it. Raises SelectionError when a selection matches nothing, names the head, or meets
    a tensor that is not floating point or has no shape yet, or ``None`` a weight computed from none of its shape.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    >>> list(select_weights(net, head="3"))
    ['0.weight']
    >>> list(select_weights(net, ["0", "1.bias"], head="3"))
    ['0.weight', '1.bias']
    """
    names = _Names(module, head)
    if select is None:
        if names.computed:
            raise SelectionError(
                f"weight {names.computed[0]!r} is computed from parameters of other shapes, so it cannot be masked: "
                "choose the weights to mask with select=, or remove its parametrization"
            )
        if names.scripted:
            raise SelectionError(
                f"module {names.scripted[0]!r} is compiled by TorchScript, which does not tell its layers: expected "
                "modules of Python; pass the network from before torch.jit, or choose parameters with select="
            )
        chosen = {name for name in names.layers if name not in names.embeddings}
        if not chosen:
            raise SelectionError(
                f"{type(module).__name__} has no convolution or linear weight outside its head "
                f"{head!r}: expected at least one to mask; choose parameters with select="
            )
    else:
        chosen = set()
        for part in _parts(select):
            chosen |= names.match(part)
    selected = {name: p for name, p in module.named_parameters() if name in chosen}
    for name, parameter in selected.items():
        _check_maskable(name, parameter)
    return selected


def warn_left_out(module: nn.Module, chosen: Iterable[str], head: str) -> None:
    """Warn where ``chosen`` leaves out matrices outside the head, embeddings and norms aside, that are ``MUCH``.

    They are recurrent layers' weights, own parameters, quantised weights in buffers.
    """
    names = _Names(module, head)
    wanted = set(chosen)
    held: list[tuple[str, Tensor]] = [*module.named_parameters()]
    held += [(n, b) for n, b in module.named_buffers() if n.endswith(".weight") or n == "weight"]
    norms = tuple(f"{name}." for name in norm_modules(module, head))
    found = {
        name: tensor.numel()
        for name, tensor in held
        if name not in wanted and not names.in_head(name) and name not in names.embeddings
        if not is_lazy(tensor) and sum(size > 1 for size in tensor.shape) > 1
        if not name.startswith(norms)
    }
    masked = sum(p.numel() for name, p in held if name in wanted)
    share = sum(found.values()) / max(sum(found.values()) + masked, 1)
    if share >= MUCH:
        warnings.warn(
            f"{len(found)} matrices with {share:.0%} of the weights are in no convolution or linear layer and are not "
            f"masked: {', '.join([*found][:3])}{', ...' if len(found) > 3 else ''}; name them with select= if tasks "
            "shall mask them, too",
            PiggybackWarning,
            stacklevel=3,
        )


class _Names:
    """A module's parameters under all their names, and the layer weights among them."""

    def __init__(self, module: nn.Module, head: str | None) -> None:
        canonical = {id(p): name for name, p in module.named_parameters()}
        self.parameters = {
            name: (canonical[id(p)], p)
            for name, p in module.named_parameters(remove_duplicate=False)
        }
        self.head = head
        self.modules = dict(module.named_modules(remove_duplicate=False))
        self.layers: dict[str, list[str]] = {}
        """Canonical name of each layer weight outside the head -> all its names there."""
        self.embeddings: set[str] = set()
        self.computed: list[str] = []
        """Layer weights that are made from parameters of other shapes."""
        self.scripted: list[str] = []
        for path, layer in self.modules.items():
            if self.in_head(path):
                continue
            if isinstance(layer, torch.jit.ScriptModule):
                self.scripted += [path] if any(True for _ in layer.parameters()) else []
                continue
            for own in _layer_weights(layer):
                name = f"{path}.{own}" if path else own
                if name not in self.parameters:
                    self.computed.append(name)
                    continue
                first = self.parameters[name][0]
                if self.in_head(first):
                    continue
                self.layers.setdefault(first, []).append(name)
                if isinstance(layer, EMBEDDINGS):
                    self.embeddings.add(first)

    def in_head(self, name: str) -> bool:
        return self.head is not None and (name == self.head or name.startswith(f"{self.head}."))

    def match(self, part: object) -> set[str]:
        """The canonical names that one part of a selection chooses: at least one."""
        if isinstance(part, str):
            return self._match_text(part)
        if isinstance(part, type) and issubclass(part, nn.Module):
            return self._match_type(part)
        if callable(part) and not isinstance(part, nn.Module):
            offered = {
                name: p
                for name, (first, p) in self.parameters.items()
                if name == first and not self.in_head(name)
            }
            chosen = {name for name, p in offered.items() if part(name, p)}
            if not chosen:
                raise SelectionError(
                    f"selection {getattr(part, '__name__', part)!r} is true for none of the "
                    f"{len(offered)} parameters outside the head {self.head!r}"
                )
            return chosen
        raise SelectionError(
            f"selection {part!r} of type {type(part).__name__}: expected a name, glob, "
            "'re:' pattern, module type, predicate (name, parameter) -> bool, or a list of these"
        )

    def _match_text(self, text: str) -> set[str]:
        if text in self.parameters:
            first = self.parameters[text][0]
            if self.in_head(text) or self.in_head(first):
                raise self._head_error(text)
            return {first}
        if text in self.modules and text and self.in_head(text):
            raise self._head_error(text)
        matches = _matcher(text)
        chosen = {
            first
            for first, aliases in self.layers.items()
            if any(matches(alias) for alias in aliases)
        }
        if not text.startswith("re:"):
            chosen |= self._below(path for path in self.modules if path and matches(path))
        if chosen:
            return chosen
        raise self._nothing(text, matches)

    def _match_type(self, kind: type[nn.Module]) -> set[str]:
        paths = [path for path, m in self.modules.items() if isinstance(m, kind)]
        if chosen := self._below(paths):
            return chosen
        held = f"its {len(paths)} modules of that type hold no layer weight outside the head"
        raise SelectionError(
            f"selection {kind.__name__} matches no weight: "
            + (held if paths else f"the model has no {kind.__name__}")
            + f"; {self._counted()}"
        )

    def _below(self, paths: Iterable[str]) -> set[str]:
        """The layer weights that lie in one of the modules."""
        wanted = set(paths)
        return {
            first
            for first, aliases in self.layers.items()
            if any(not wanted.isdisjoint(_parents(alias)) for alias in aliases)
        }

    def _head_error(self, text: str) -> SelectionError:
        return SelectionError(
            f"selection {text!r} is in the head {self.head!r}, which every task trains for itself; "
            "leave it out, or name another head with head="
        )

    def _nothing(self, text: str, matches: Callable[[str], bool]) -> SelectionError:
        others = [
            name
            for name in self.parameters
            if matches(name) or any(path and matches(path) for path in _parents(name))
        ]
        if others and all(self.in_head(name) for name in others):
            return self._head_error(text)
        if others:
            return SelectionError(
                f"selection {text!r} matches {len(others)} parameters, but no weight of a "
                f"convolution, linear layer or embedding outside the head "
                f"({', '.join(others[:3])}): name other parameters in full"
            )
        known = [*self.layers, *(path for path in self.modules if path)]
        plain = re.sub(r"^re:|[\\^$*?]", "", text)
        return SelectionError(
            f"selection {text!r} matches no weight; {self._counted()}{near_misses(plain, known)}"
        )

    def _counted(self) -> str:
        first = ", ".join(list(self.layers)[:3])
        return f"{len(self.layers)} weights can be masked" + (f" ({first}, ...)" if first else "")


def _parts(select: object) -> Iterator[object]:
    """The selection's parts, nested lists flattened; an empty one is an error."""
    if isinstance(select, (str, type)) or not isinstance(select, Iterable):
        yield select
        return
    empty = True
    for part in select:
        empty = False
        yield from _parts(part)
    if empty:
        raise SelectionError("selection is an empty list: expected at least one name or pattern")


def _matcher(text: str) -> Callable[[str], bool]:
    if not text.startswith("re:"):
        return lambda name: fnmatchcase(name, text)
    try:
        pattern = re.compile(text[3:])
    except re.error as error:
        raise SelectionError(f"selection {text!r} is not a regular expression: {error}") from error
    return lambda name: pattern.search(name) is not None


def _parents(name: str) -> Iterator[str]:
    """'' and 'a' and 'a.b' for 'a.b.weight'."""
    yield ""
    for end, letter in enumerate(name):
        if letter == ".":
            yield name[:end]


def _layer_weights(layer: nn.Module) -> list[str]:
    """The names, within one module, of the weights it multiplies its input with, or of what they are made from."""
    if isinstance(layer, nn.MultiheadAttention):
        return [found for name in _ATTENTION if (found := _source(layer, name))]
    if not isinstance(layer, nn.modules.rnn.RNNBase) and (stacked := _experts(layer)):
        return stacked
    if not (_is_product(layer) or isinstance(layer, EMBEDDINGS)):
        return []
    found = _source(layer, "weight")
    return [] if found is None else [found]


def _source(layer: nn.Module, name: str) -> str | None:
    """The parameter that a layer's weight is, or is computed from: by a parametrization, old weight norm, pruning.

    Its own name where it is computed from none of its shape, None where the layer has no such weight.
    """
    own = layer._parameters
    if own.get(name) is not None:
        return name
    if parametrize.is_parametrized(layer, name):
        part = layer.get_submodule(f"parametrizations.{name}")
        mode, within = part.training, f"parametrizations.{name}.original"
        part.eval()  # spectral norm would change its state
        with torch.no_grad():
            made = getattr(layer, name)
        part.train(mode)
        known = [(n, p) for n, p in layer.named_parameters() if n.startswith(within)]
    else:
        made = getattr(layer, name, None)
        known = [(n, p) for n, p in own.items() if p is not None and n.startswith(f"{name}_")]
    if not isinstance(made, Tensor):
        return None
    return next((n for n, p in known if p.shape == made.shape), name)


def _experts(layer: nn.Module) -> list[str]:
    """The names of matrices that a layer holds in stacks, (experts, in, out): mixtures of experts in transformers.

    A stack of one is a position's or a token's embedding, (1, tokens, width).
    """
    if isinstance(layer, (nn.modules.conv._ConvNd, nn.Bilinear)):
        return []
    return [
        name
        for name, param in layer.named_parameters(recurse=False)
        if not is_lazy(param) and param.ndim == 3 and min(param.shape) > 1
    ]


def _is_product(layer: nn.Module) -> bool:
    """Whether it is a convolution or a linear layer, torch's own or one that looks like them.

    Only the look tells for those that inherit from nn.Module directly: transformers' Conv1D,
    timm's CondConv2d.
    """
    if isinstance(layer, (nn.Linear, nn.Bilinear, *CONVOLUTIONS)):
        return True
    weight = layer._parameters.get("weight")
    if weight is None or is_lazy(weight) or weight.ndim < 2:
        return False
    looks = (
        ("in_channels", "out_channels", "kernel_size"),
        ("in_features", "out_features"),
        ("nx", "nf"),
    )
    return any(all(hasattr(layer, name) for name in look) for look in looks)


def _check_maskable(name: str, parameter: Tensor) -> None:
    if is_lazy(parameter):
        raise SelectionError(
            f"parameter {name!r} has no shape yet (a lazy layer): "
            "run one batch through the model first"
        )
    if parameter.dtype not in MASKABLE_DTYPES:
        raise SelectionError(
            f"parameter {name!r} is {parameter.dtype}: expected "
            f"{', '.join(str(d).removeprefix('torch.') for d in MASKABLE_DTYPES)}; "
            "leave it out with select=, or load the model unquantised"
        )
