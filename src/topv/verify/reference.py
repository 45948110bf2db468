"""What a pruned run must equal: the whole model, with pruned tokens hidden as keys in its later layers.

Written without the runtime it judges. A recurrent or convolutional layer has no keys to hide; there the reference is
that layer run on the tokens that are left.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

from ..models import Family

__all__ = ["extended", "masked_logits", "relative_error"]


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|, less the numbers that `b` holds at its dtype lowest: logits that a model forbids.

    Infinite where `a` allows one of those.
    """
    allowed = b > torch.finfo(b.dtype).min / 2
    if bool((a[~allowed] > torch.finfo(a.dtype).min / 2).any()):
        return float("inf")
    return float((a - b)[allowed].abs().max() / b[allowed].abs().max())


def extended(inputs: dict[str, Any], sequences: torch.Tensor, continuation: dict[str, int]) -> dict[str, Any]:
    """The inputs of a prompt (B, T), with generated tokens behind it: `sequences` (B, T + steps).

    Arguments that hold a number per token go on with that of `continuation`, 0 by default.
    """
    batch, length = inputs["input_ids"].shape
    more = sequences.shape[1] - length
    longer: dict[str, Any] = {}
    for name, value in inputs.items():
        per_token = isinstance(value, torch.Tensor) and value.shape == (batch, length)
        fill = 1 if name == "attention_mask" else continuation.get(name, 0)
        longer[name] = torch.nn.functional.pad(value, (0, more), value=fill) if per_token else value
    return longer | {"input_ids": sequences}


def masked_logits(
    model: Any, family: Family, inputs: dict[str, Any], kept: Any, visual: torch.Tensor, layer: int
) -> torch.Tensor:
    """Logits (B, T, V) of the eager, unpruned model whose layers from `layer` on do not see pruned tokens.

    Args:
        model: the model, with nothing attached and eager attention.
        family: its parts.
        inputs: one sample without padding, or a batch for a model whose layers all keep keys.
        kept: LongTensor, the columns of kept visual tokens; for a batch a list of one for each sample.
        visual: BoolTensor (T,), the columns of all visual tokens; (B, T) for a batch.
        layer: the first layer that does not see the pruned ones.
    """
    hidden = visual.clone()
    for row, columns in zip(hidden.view(-1, hidden.shape[-1]), [kept] if visual.ndim == 1 else kept, strict=True):
        row[columns] = False
    hidden = torch.nn.functional.pad(hidden, (0, inputs["input_ids"].shape[1] - hidden.shape[-1]))
    handles = []
    for index in range(layer, len(family.layers)):
        block = family.layers[index]
        names = list(inspect.signature(block.forward).parameters)
        if not family.keeps_keys(index) and not family.is_recurrent(index):
            continue
        if family.is_recurrent(index) or family.mixes_neighbours(index):
            if hidden.ndim > 1:
                raise TypeError(f"{type(block).__name__} cannot be run on what is left of several samples at once")
            handles.append(block.register_forward_pre_hook(_only_left(names, ~hidden), with_kwargs=True))
            handles.append(block.register_forward_hook(_put_back(names, ~hidden), with_kwargs=True))
        else:
            hook = functools.partial(_hide_keys, names, hidden if hidden.ndim == 1 else hidden[:, None, None, :])
            handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad():
            logits: torch.Tensor = model(**{"use_cache": False} | inputs).logits
            return logits
    finally:
        for handle in handles:
            handle.remove()


def _replace(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any], changed: dict[str, Any]) -> Any:
    bound = dict(zip(names, args, strict=False))
    positional = tuple(changed.get(name, value) for name, value in bound.items())
    return positional, {**kwargs, **{k: v for k, v in changed.items() if k not in bound}}


def _hide_keys(names: list[str], hidden: torch.Tensor, module: Any, args: Any, kwargs: Any) -> Any:
    mask = {**dict(zip(names, args, strict=False)), **kwargs}.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 4:
        raise TypeError(f"{type(module).__name__} got {type(mask).__name__} as its mask; expected a 4-D eager one.")
    unseen = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return _replace(names, args, kwargs, {"attention_mask": mask.masked_fill(hidden, unseen)})


def _only_left(names: list[str], left: torch.Tensor) -> Any:
    length, columns = len(left), left.nonzero().squeeze(1)

    def cut(name: str, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if name == "relative_distance":
                # Counted in the sequence that the layer sees.
                return value[: len(columns), : len(columns)]
            dims = (2, 3) if name == "attention_mask" and value.ndim == 4 else (1,)
            if name == "position_ids" and value.ndim == 3:
                dims = (2,)
            for dim in dims:
                value = value.index_select(dim, columns) if dim < value.ndim and value.shape[dim] == length else value
            return value
        return tuple(cut(name, item) for item in value) if isinstance(value, tuple) else value

    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        bound = {**dict(zip(names, args, strict=False)), **kwargs}
        return _replace(names, args, kwargs, {name: cut(name, value) for name, value in bound.items()})

    return hook


def _put_back(names: list[str], left: torch.Tensor) -> Any:
    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        full = states.new_zeros(states.shape[0], len(left), *states.shape[2:])
        full[:, left] = states
        return (full, *output[1:]) if isinstance(output, tuple) else full

    return hook
