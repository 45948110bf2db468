"""What can be said of a call before its first layer runs: its prompt, its pictures, and what is to be kept of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import LayoutError, UnsupportedError
from ..layout import VisualLayout
from ..methods import Method
from ..models import Family
from ..models.encoded import recall, refuse_lost
from .arguments import CACHE, MASK
from .call import Call
from .masks import prompt_mask, real_columns
from .plan import PrefillPlan, build_plan
from .upstream import refuse_lone_token

__all__ = ["open_call", "plan_prompt"]


def open_call(
    family: Family, method: Method, layers: tuple[int, ...], module: nn.Module, inputs: dict[str, Any]
) -> Call:
    """The record of a call.

    Args:
        family: the model's parts.
        method: the method that prunes.
        layers: its pruning layers.
        module: the part that was called.
        inputs: its arguments, by topv's words.

    Raises:
        UnsupportedError: when the prompt's ids are missing, or a KV cache is out of sight.
        LayoutError: when the prompt's visual tokens and its pictures disagree.
    """
    input_ids = inputs.get("input_ids")
    if input_ids is None:
        raise UnsupportedError(
            f"{type(module).__name__} was called without input_ids, so topv cannot see which positions hold visual "
            "tokens. Pass input_ids instead of inputs_embeds, or detach."
        )
    batch, length = input_ids.shape
    cache = inputs.get(CACHE)
    past = 0 if cache is None else int(cache.get_seq_length())
    refuse_lone_token(module, inputs, length=length, past=past)
    mask = prompt_mask(inputs.get(MASK))
    plan = None
    if length > 1 or past == 0:
        plan = plan_prompt(family, method, layers, inputs, mask=mask, past=past)
    return Call(
        family=family,
        method=method,
        layers=layers,
        batch=batch,
        length=length,
        past=past,
        plan=plan,
        is_prefill=plan is not None and (past == 0 or plan.layout.visual_tokens > 0),
        mask=mask,
    )


def plan_prompt(
    family: Family,
    method: Method,
    layers: tuple[int, ...],
    inputs: Mapping[str, Any],
    *,
    mask: torch.Tensor | None,
    past: int,
) -> PrefillPlan:
    """What to keep of the prompt in `inputs`, behind `past` columns that are in the cache.

    Raises:
        LayoutError: when the prompt's visual tokens and its pictures disagree.
        UnsupportedError, InputError, ValueError: when the method does not fit the prompt, as `build_plan` says.
    """
    input_ids = inputs["input_ids"]
    batch, length = input_ids.shape
    placeholders = family.placeholders(input_ids, inputs).cpu()
    if family.has_images(inputs):
        try:
            layout = family.layout(placeholders, inputs)
        except LayoutError as error:
            if recall(inputs).lost:
                raise refuse_lost(family.model_name) from error
            raise
    elif bool(placeholders.any()):
        raise LayoutError(
            f"the prompt holds {int(placeholders.sum())} image placeholder tokens, but no images came with it. "
            "Pass the pixel_values that the processor returned."
        )
    else:
        layout = VisualLayout(batch, length, ())
    labels = inputs.get("labels")
    return build_plan(
        layout,
        method,
        family=family,
        layers=layers,
        real=real_columns(mask, batch=batch, past=past, length=length),
        labels=None if labels is None else labels.cpu(),
    )
