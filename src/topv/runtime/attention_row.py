"""The attention weights of one decoder layer, read beside its fast attention path."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..errors import UnsupportedError
from .arguments import CACHE, HIDDEN_STATES, MASK, Signature
from .compaction import Compaction, gather_arguments
from .masks import visible
from .record import mask_sizes

__all__ = ["KeyTap", "Raters", "attention_to_tokens", "call_eagerly", "run_eagerly"]

_ROWS_AT_ONCE = 64
"""Of so many queries the attention weights are held at once."""


@dataclass(frozen=True)
class Raters:
    """The tokens of each sample whose attention counts.

    Attributes:
        rows: LongTensor (B, R), where they are.
        weights: float32 (B, R), how much each counts, 0 where there is none; None for one that counts whole.
    """

    rows: torch.Tensor
    weights: torch.Tensor | None = None


class KeyTap:
    """Stands in for the KV cache during one layer's attention, and remembers the keys and values it worked with.

    Args:
        cache: the cache to pass updates on to, or None when the forward runs without one.
    """

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Store new states as the cache would, and return all states of the layer."""
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, layer_idx, *args, **kwargs)
        self.keys, self.values = keys, values
        return keys, values

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


class _Replay:
    """A cache whose update changes nothing and returns states seen before.

    Args:
        keys, values: the states.
        before: columns before each query.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, before: torch.Tensor) -> None:
        self._states = keys, values
        self._before = before

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before the queries, for layers that scale queries by their place.

        Raises:
            UnsupportedError: when queries differ in it.
        """
        first, last = int(self._before.min()), int(self._before.max())
        if first != last:
            raise UnsupportedError(
                "the tokens whose attention is wanted are in different columns, and this model scales queries by "
                "their column, so it cannot be read at once. Pad the batch on the left, and use a method that reads "
                "one token's attention."
            )
        return first

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self._states


def _eager_twin(attention: nn.Module) -> nn.Module:
    """A module that shares `attention`'s weights, but runs eagerly, without hooks, and returns its weights."""
    config: Any = copy.copy(attention.config)
    config._attn_implementation = "eager"
    twin = copy.copy(attention)
    object.__setattr__(twin, "config", config)
    # accelerate puts a `forward` on the instance that would run the original module.
    twin.__dict__.pop("forward", None)
    object.__setattr__(twin, "training", False)
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        object.__setattr__(twin, name, OrderedDict())
    return twin


def attention_to_tokens(
    attention: nn.Module,
    arguments: dict[str, Any],
    tap: KeyTap,
    *,
    raters: Raters,
    past: int,
    mask: torch.Tensor | None,
    whole_map: bool,
) -> torch.Tensor:
    """How much the raters of each sample attend to every key: float32 (B, keys), their weighted sum, mean over heads.

    The layer's own attention module computes it, so that its rotary embedding, norms and scaling are the model's;
    the queries are the raters alone, and the keys are those the layer just used.

    Args:
        attention: the attention module, which has just run.
        arguments: the arguments it ran with.
        tap: the keys and values it ran with.
        raters: the tokens that count, by their places among the module's queries.
        past: keys that were in the KV cache before.
        mask: the module's attention mask: None, (B, keys) or (B, 1, queries, keys).
        whole_map: compute the full (queries, keys) map and take its row, as FastV was published.

    Raises:
        UnsupportedError: when the module keeps its weights to itself.
    """
    if tap.keys is None or tap.values is None or "config" not in attention.__dict__:
        raise UnsupportedError(
            f"{type(attention).__name__} does not hand its keys to a KV cache in the way topv can read, so there are "
            "no attention weights to rank by. Use a method that needs none, such as TopV."
        )
    hidden = arguments[HIDDEN_STATES]
    batch, length = hidden.shape[:2]
    width = tap.keys.shape[-2]
    attended = torch.zeros((), device=hidden.device)
    for first in range(0, raters.rows.shape[1], _ROWS_AT_ONCE):
        some = slice(first, first + _ROWS_AT_ONCE)
        rows = raters.rows[:, some].to(hidden.device, non_blocking=True)
        queries = torch.arange(length, device=hidden.device).expand(batch, -1) if whole_map else rows
        call = dict(arguments)
        if not whole_map:
            call = gather_arguments(arguments, Compaction(rows, None, length), batch)
        before = torch.zeros_like(raters.rows[:, :1]) if whole_map else raters.rows[:, some]
        call[CACHE] = _Replay(tap.keys, tap.values, before + past)
        call[MASK] = _additive_mask(hidden, mask, queries, past=past, width=width)
        _, weights = call_eagerly(attention, call)
        if raters.weights is None:
            return _row_mean(attention, weights, rows[:, 0] if whole_map else torch.zeros_like(rows[:, 0]))
        counts = raters.weights[:, some].to(hidden.device).unsqueeze(2)
        attended = attended + (weights.float().mean(1) * counts).sum(1)
    return _over_all_heads(attention, attended)


def run_eagerly(
    attention: nn.Module,
    arguments: dict[str, Any],
    *,
    last: torch.Tensor,
    past: int,
    mask: torch.Tensor | None,
) -> tuple[Any, torch.Tensor]:
    """Run an attention module with its whole map computed, instead of on its fast path.

    Args:
        attention: the attention module.
        arguments: what it was called with.
        last: LongTensor (B,), the column of each sample's last real token.
        past: columns that were in the KV cache before.
        mask: the forward's attention mask: None, (B, keys) or (B, 1, queries, keys).

    Returns:
        What the module returns, and float32 (B, keys): how much each sample's last real token attends to every key,
        mean over heads.

    Raises:
        UnsupportedError: when the module keeps its weights to itself.
    """
    hidden, cache = arguments[HIDDEN_STATES], arguments.get(CACHE)
    batch, length = hidden.shape[:2]
    width, _ = mask_sizes(cache, length, getattr(attention, "layer_idx", 0))
    queries = torch.arange(length, device=hidden.device).expand(batch, -1)
    call = {**arguments, MASK: _additive_mask(hidden, mask, queries, past=past, width=width)}
    output, weights = call_eagerly(attention, call)
    return output, _row_mean(attention, weights, last.to(hidden.device, non_blocking=True))


def call_eagerly(attention: nn.Module, call: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """Call an attention module eagerly: what it returns, and its weights (B, heads, queries, keys).

    Args:
        attention: the module.
        call: its arguments, by topv's words for them.

    Raises:
        UnsupportedError: when it keeps its weights to itself.
    """
    signature = Signature(type(attention).forward, takes_states=True)
    output = _eager_twin(attention)(**signature.spell(call))
    weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    if weights is None:
        raise UnsupportedError(
            f"{type(attention).__name__} returns no attention weights in eager mode, so there is nothing to rank by. "
            "Use a method that needs none, such as TopV."
        )
    return output, weights


def _row_mean(attention: nn.Module, weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Row `rows[b]` of each sample's (B, H, Q, K) weights, mean over heads: float32 (B, K)."""
    own = weights[torch.arange(len(rows), device=weights.device), :, rows]
    return _over_all_heads(attention, own.float().mean(1))


def _over_all_heads(attention: nn.Module, mean: torch.Tensor) -> torch.Tensor:
    """The mean over the heads of every process, where tensor parallelism gave each of them some."""
    mesh = next((p.device_mesh for p in attention.parameters() if isinstance(p, DTensor)), None)
    if mesh is None or mesh.size() == 1:
        return mean
    mean = mean.contiguous()
    torch.distributed.all_reduce(mean, group=mesh.get_group() if mesh.ndim == 1 else mesh["tp"].get_group())
    return mean / (mesh.size() if mesh.ndim == 1 else mesh["tp"].size())


def _additive_mask(
    hidden: torch.Tensor, mask: torch.Tensor | None, queries: torch.Tensor, *, past: int, width: int
) -> torch.Tensor:
    """The mask for eager attention, (B, 1, Q, width): 0 where a query sees a key, the lowest number elsewhere.

    Args:
        hidden: (B, T, D), for its dtype and device.
        mask: the forward's attention mask: None, (B, keys) or (B, 1, T, keys).
        queries: LongTensor (B, Q), the columns of this forward that ask.
        past: columns that were in the KV cache before.
        width: keys, among them the empty slots of a preallocated cache.
    """
    if mask is not None and mask.ndim == 4:
        seen = visible(mask).expand(hidden.shape[0], -1, -1, -1)[:, 0]
        seen = seen.gather(1, queries.unsqueeze(2).expand(-1, -1, seen.shape[2]))[..., :width]
    else:
        keys = torch.arange(width, device=hidden.device)
        seen = keys <= (queries + past).unsqueeze(2)
        if mask is not None:
            real = torch.nn.functional.pad(mask.bool(), (0, max(0, width - mask.shape[1])))[:, :width]
            seen = seen & real.unsqueeze(1)
    lowest = torch.finfo(hidden.dtype).min
    return torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~seen, lowest)[:, None]
