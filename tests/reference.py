"""The meaning of pruning, computed without it: the whole model, with pruned tokens hidden as keys in later layers."""

from __future__ import annotations

import functools
from typing import Any

import torch


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """The position ids that generation gives a padded batch."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def pruned_columns(inputs: dict[str, torch.Tensor], kept: list[torch.Tensor], image_token: int) -> torch.Tensor:
    """Which columns hold a visual token that was not kept: BoolTensor (B, T)."""
    pruned = inputs["input_ids"] == image_token
    for sample, columns in enumerate(kept):
        pruned[sample, columns] = False
    return pruned


def masked_forward(model: Any, inputs: dict[str, torch.Tensor], hidden: torch.Tensor, layer: int, **kwargs: Any) -> Any:
    """Run the unpruned model with the columns `hidden` (B, T) invisible as keys in layers from `layer` on."""
    return staged_forward(model, inputs, {layer: hidden}, **kwargs)


def staged_forward(
    model: Any,
    inputs: dict[str, torch.Tensor],
    hidden: dict[int, torch.Tensor],
    *,
    gradients: bool = False,
    **kwargs: Any,
) -> Any:
    """Run the unpruned model with columns (B, T) invisible as keys: from each layer of `hidden` on those it names."""
    mask = inputs["attention_mask"].bool()
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    dtype = model.dtype

    def additive(keys: torch.Tensor) -> torch.Tensor:
        seen = causal[None] & keys[:, None, :]
        return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]

    early, late = additive(mask), {start: additive(mask & ~columns) for start, columns in hidden.items()}
    layers = model.model.language_model.layers

    def swap(own: torch.Tensor, module: Any, args: Any, call: dict[str, Any]) -> Any:
        return args, {**call, "attention_mask": own}

    handles = [
        block.register_forward_pre_hook(
            functools.partial(swap, late[max(start for start in late if start <= index)]), with_kwargs=True
        )
        for index, block in enumerate(layers)
        if index >= min(late)
    ]
    try:
        call = {**inputs, "attention_mask": early}
        call.setdefault("position_ids", positions(mask))
        with torch.set_grad_enabled(gradients):
            return model(**call, use_cache=False, output_hidden_states=True, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


def hidden_columns(
    inputs: dict[str, torch.Tensor], kept: dict[int, list[torch.Tensor]], image_token: int
) -> dict[int, torch.Tensor]:
    """By pruning layer, BoolTensor (B, T): the visual columns that it or one before has dropped."""
    return {layer: pruned_columns(inputs, own, image_token) for layer, own in kept.items()}


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|."""
    return float((a - b).abs().max() / b.abs().max())


def generated_reference(
    model: Any, inputs: dict[str, torch.Tensor], sequences: torch.Tensor, **kept: Any
) -> torch.Tensor:
    """Logits (B, steps, V) that the masked model gives each generated token, in one forward over the whole sequence.

    Args:
        model: the model, with nothing attached.
        inputs: the prompt.
        sequences: LongTensor (B, T + steps), prompt and generated tokens.
        kept: `positions`, each sample's kept columns, and `layer`, the first layer that hides the others; or
            `by_layer`, for each pruning layer each sample's kept columns.
    """
    by_layer = kept.get("by_layer") or {kept["layer"]: kept["positions"]}
    length = inputs["input_ids"].shape[1]
    steps = sequences.shape[1] - length
    ones = torch.ones(len(sequences), steps, dtype=torch.long)
    mask = torch.cat([inputs["attention_mask"], ones], dim=1)
    hidden = {
        layer: torch.nn.functional.pad(columns, (0, steps))
        for layer, columns in hidden_columns(inputs, by_layer, model.config.image_token_id).items()
    }
    whole = {**inputs, "input_ids": sequences, "attention_mask": mask}
    return staged_forward(model, whole, hidden).logits[:, length - 1 : -1]
