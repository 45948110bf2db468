"""What cannot be pruned rightly, told before it is tried."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from ..methods import Method
from ..models import Family
from ..models.reasons import REASONS
from .arguments import CACHE, MASK
from .call import Call
from .record import CacheRecord

__all__ = [
    "forget_compiled",
    "refuse_borrowing",
    "refuse_compiled",
    "refuse_other_layers",
    "refuse_packed",
    "refuse_stages",
    "refuse_windows",
]


def refuse_packed(inputs: dict[str, Any]) -> None:
    """Several sequences packed into one row would see each other in the layers that are shortened.

    Raises:
        UnsupportedError: when the decoder's arguments say that rows are packed.
    """
    packed = inputs.get("cu_seq_lens_q") is not None
    position_ids = inputs.get("position_ids")
    if position_ids is not None and position_ids.ndim == 3:
        # Of M-RoPE's rows only the first counts along the prompt.
        position_ids = position_ids[0]
    if inputs.get(MASK) is None and inputs.get(CACHE) is None and position_ids is not None:
        packed = packed or bool((position_ids.diff(dim=-1) < 0).any())
    if packed:
        raise UnsupportedError(
            "several sequences are packed into one row (position ids restart), which topv cannot prune. Pass them as "
            "a padded batch with an attention mask."
        )


def refuse_windows(call: Call) -> None:
    """A flash kernel counts a sliding window in the keys it is given, not in the columns of the unpruned prompt.

    Raises:
        UnsupportedError: when keys would leave a window too late.
    """
    if not call.is_flash:
        return
    family = call.family
    windows = [w for i in range(call.layers[0], len(family.layers)) if (w := family.window(i)) is not None]
    if windows and call.past + call.length > min(windows):
        raise UnsupportedError(
            f"the prompt has {call.past + call.length} columns, more than the attention window of "
            f"{min(windows)}, and {family.text_config._attn_implementation} cannot measure a window in the columns of "
            "the unpruned prompt. Load the model with attn_implementation='sdpa', 'eager' or 'flex_attention', or "
            "shorten the prompt."
        )


def refuse_borrowing(family: Family, layer: int) -> None:
    """A layer's choice among its keys is of no use to one that holds others.

    Raises:
        UnsupportedError: when a layer from `layer` on works with what a layer before it has chosen or holds.
    """
    chosen = getattr(family.text_config, "indexer_types", None) or ()
    sources = getattr(family.text_config, "kv_source_layers", None) or ()
    borrows = layer < len(chosen) and chosen[layer] == "shared"
    if borrows or any(source < layer for source in sources[layer:]):
        starts = [
            start
            for start in range(1, len(family.layers))
            if (start >= len(chosen) or chosen[start] != "shared") and all(s >= start for s in sources[start:])
        ]
        advice = f"start at one of the layers {starts}" if starts else "the model shares them throughout"
        raise UnsupportedError(
            f"decoder layers from {layer} on work with keys that a layer before it has chosen among all tokens: "
            f"{REASONS['window']}. Choose another layer: {advice}."
        )


def refuse_stages(family: Family, method: Method) -> None:
    """Behind the first pruning layer nothing but attention is read, of layers that read it off as topv does.

    Raises:
        UnsupportedError: when the method needs more, or the decoder's layers correct themselves by what they hold.
    """
    unread = method.needs - {"attention_row", "attention_raters"}
    if unread:
        raise UnsupportedError(
            f"{method!r} prunes at several layers and needs {', '.join(sorted(unread))}, which topv reads before the "
            "first of them alone. Rank by attention_row or attention_raters, or prune at one layer."
        )
    if type(family).corrections is not Family.corrections or family.asks_for_slots:
        raise UnsupportedError(
            f"the decoder layers of {type(family.model).__name__} depend on how many entries they hold, so attention "
            "cannot be read where the sequence is short already. Use a method that prunes at one layer."
        )


def refuse_other_layers(records: Sequence[CacheRecord], layers: Sequence[int]) -> None:
    """A cache goes on to be pruned where it was.

    Raises:
        UnsupportedError: when `records` of a cache begin at other layers than the pruning `layers`.
    """
    short = [record.layer for record in records]
    if set(short) <= set(layers):
        return
    if short[0] == 0:
        raise UnsupportedError(
            "compact_early_layers=True has dropped the first images from every layer of this cache, so it cannot take "
            "another image. Prefill the whole conversation anew, or leave compact_early_layers out."
        )
    was, now = (", ".join(map(str, numbers)) for numbers in (short, layers))
    advice = f"layer={was}" if len(short) == 1 else "the settings that it was pruned with"
    raise UnsupportedError(
        f"the cache was pruned from layer {was} on, and this pruning starts at layer {now}. Attach the method with "
        f"{advice} to continue it with a new image."
    )


def refuse_compiled(family: Family) -> None:
    """Hooks do not reach a module that was compiled before they were added.

    Raises:
        UnsupportedError: when any part of the model is compiled.
    """
    for name, module in family.model.named_modules():
        compiled = getattr(module, "_compiled_call_impl", None) is not None or "_compiled_call" in vars(module)
        compiled = compiled or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        if compiled or type(module).__name__ == "OptimizedModule":
            raise UnsupportedError(
                f"{name or type(module).__name__} is compiled, and hooks added now would be ignored without a word. "
                "Attach topv to the model before it is compiled (generation with a static cache compiles it too)."
            )


def forget_compiled(family: Family) -> None:
    """Drop what was compiled of the model as it was: compiled code does not look whether hooks came or went.

    `torch.compile(model)` leaves no mark on the model; what it compiled is kept with the code of its forwards.
    """
    if "torch._dynamo.convert_frame" not in sys.modules:
        return
    if any(_has_compiled_code(module) for module in (family.model, family.multimodal, family.language_model)):
        torch._dynamo.reset()


def _has_compiled_code(module: nn.Module) -> bool:
    """Whether a compiler keeps code for the forward of `module`'s class, or of what decorates it."""
    entries = torch._C._dynamo.eval_frame._debug_get_cache_entry_list
    function: Any = type(module).forward
    while function is not None:
        if hasattr(function, "__code__") and entries(function.__code__):
            return True
        function = getattr(function, "__wrapped__", None)
    return False
