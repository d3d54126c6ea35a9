"""Networks that read texts, called with their tokens alone, int64 (n, tokens), padded at the end."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class TokenHead(nn.Linear):
    """A classifier of every token: behind it a ``TextEncoder`` answers without taking the mean."""

    per_token = True


class TextEncoder(nn.Module):
    """A body of transformers, the mean of what it makes of a text's tokens, and a classifier.

    ``body`` returns (n, tokens, width); padding, the token ``pad``, is left out of the mean, as sentence encoders have
    it. The classifier has one class, until a task brings its; a ``TokenHead`` gets every token's state.
    """

    def __init__(self, body: nn.Module, width: int, pad: int) -> None:
        super().__init__()
        self.body, self.pad = body, pad
        self.head = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (n, classes), or of a ``TokenHead`` (n, tokens, classes)."""
        there = (tokens != self.pad).long()
        states = self.body(input_ids=tokens, attention_mask=there)[0]
        whole = not getattr(self.head, "per_token", False)
        logits: Tensor = self.head(mean_of(states, there) if whole else states)
        return logits


def mean_of(states: Tensor, there: Tensor) -> Tensor:
    """Return the mean of ``states`` (n, tokens, width) over the tokens that are ``there``, 1 or 0 (n, tokens).

    >>> import torch
    >>> mean_of(torch.tensor([[[2.0], [4.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[3.]])
    """
    weights = there.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)


def mask_padding(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, pad: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Add the attention mask to a call with tokens alone; a forward pre-hook."""
    if len(args) == 1 and isinstance(args[0], Tensor) and "attention_mask" not in kwargs:
        return (), {**kwargs, "input_ids": args[0], "attention_mask": (args[0] != pad).long()}
    return args, kwargs


def longest_of(config: Any, tokenizer_length: int, default: int = 512) -> int:
    """Return how many tokens a network of transformers takes, by its configuration and its tokenizer's."""
    positions = getattr(config, "max_position_embeddings", None) or default
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= 2  # which count on from the padding's
    # Tokenizers without a limit say 1e30; long contexts would take memory by the square.
    return int(min(positions, tokenizer_length, default))
