"""The taps on one decoder layer, by which a method's evidence is read while the layer runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from ..methods import TARGETS
from ..models import Family
from .arguments import CACHE, HIDDEN_STATES, Signature
from .attention_row import KeyTap
from .driver import Reader
from .evidence import EvidenceReader
from .wrappers import Wrapper

__all__ = ["tap_layer"]

_ATTENTIONS = {"attention_row", "attention_map", "attention_raters"}

Tapped = Callable[[Any], "Reader | None"]
"""Gives who reads, from the states (B, T, D) at hand; None when there is nothing to read."""


def tap_layer(family: Family, index: int, needs: Collection[str], tapped: Tapped) -> list[Any]:
    """Put the taps for `needs` on decoder layer `index`.

    Returns:
        The handles that remove them.

    Raises:
        ValueError: when some evidence is of no known kind.
    """
    needs = {name for name in needs if not name.startswith("encoder_")}
    unknown = needs - {"source", "text", *_ATTENTIONS, *TARGETS}
    if unknown:
        raise ValueError(
            f"the method asks for unknown evidence {sorted(unknown)}. Known: source, text, attention_row, "
            f"attention_map, attention_raters, {', '.join(TARGETS)}."
        )
    if not needs - {"source", "text"}:
        return []
    layer = family.layers[index]
    attention, mlp = family.attention(layer), family.mlp(layer)
    handles: list[Any] = []
    for name, module in (("pre_norm", attention), ("post_norm", mlp)):
        if name in needs:
            hook = functools.partial(_read_input, tapped, Signature(module, takes_states=True))
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    for name, module in (("attention", attention), ("mlp", mlp)):
        if name in needs:
            handles.append(module.register_forward_hook(functools.partial(_read_output, tapped)))
    if _ATTENTIONS.isdisjoint(needs):
        return handles
    signature = Signature(attention, takes_states=True)
    if "attention_map" in needs and "forward" not in vars(attention):
        whole = functools.partial(_run_eagerly, tapped, signature, attention, attention.forward)
        handles.append(Wrapper(attention, "forward", whole))
        return handles
    before = functools.partial(_tap_keys, tapped, signature)
    after = functools.partial(_read_attention, tapped, signature)
    handles.append(attention.register_forward_pre_hook(before, with_kwargs=True))
    handles.append(attention.register_forward_hook(after, with_kwargs=True))
    return handles


def _plain(reader: Any) -> EvidenceReader | None:
    """The reader of a forward that is not being traced: attention weights are read in no graph."""
    return reader if isinstance(reader, EvidenceReader) else None


def _read_input(
    tapped: Tapped, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    states: Any = signature.bind(args, kwargs).get(HIDDEN_STATES)
    reader = tapped(states)
    if reader is not None:
        # Nothing writes into what a module was given, so it need not be copied.
        reader.read_target(states, copy=False)


def _read_output(tapped: Tapped, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    states = output[0] if isinstance(output, tuple) else output
    reader = tapped(states)
    if reader is not None:
        reader.read_target(states, copy=True)


def _tap_keys(
    tapped: Tapped, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    arguments = signature.bind(args, kwargs)
    reader = _plain(tapped(arguments.get(HIDDEN_STATES)))
    if reader is None:
        return None
    tap = KeyTap(arguments.get(CACHE))
    reader.keys = tap
    return signature.rebuild(args, kwargs, {CACHE: tap})


def _read_attention(
    tapped: Tapped, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    arguments = signature.bind(args, kwargs)
    reader = _plain(tapped(arguments.get(HIDDEN_STATES)))
    if reader is not None:
        reader.read_attention(module, arguments)


def _run_eagerly(
    tapped: Tapped,
    signature: Signature,
    module: nn.Module,
    usual: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The attention module with its whole map computed, as FastV was published, in the place of its fast path."""
    arguments = signature.bind(args, kwargs)
    reader = _plain(tapped(arguments.get(HIDDEN_STATES)))
    if reader is None:
        return usual(*args, **kwargs)
    return reader.run_attention(module, arguments)
