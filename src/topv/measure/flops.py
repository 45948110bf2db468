"""FLOPs of a whole prefill: decoder layers from their formulas, what comes before them from the shapes that run."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..errors import InputError, UnsupportedError
from ..models import Family, family_of
from ..models.flops import LayerCount
from ..runtime import Pruning
from ..runtime.arguments import CACHE, Signature

__all__ = ["FlopsCount", "count_decoder", "count_flops"]

_PROJECTOR = re.compile(r"projector|projection|connector|aligner|merger|qformer|resampler|adapter|embed_vision|mlp1")
_COUNTED_ATTENTION = (None, "eager", "sdpa")


@dataclass(frozen=True)
class FlopsCount:
    """FLOPs of one prefill over its batch, padding included: what torch computes with eager attention.

    Attributes:
        layers: each decoder layer's.
        vision: the vision tower's.
        projector: those of what fits its output to the decoder.
        other: what else runs before the decoder's first layer: rotary tables, per-layer embeddings.
        head: the language-modelling head's, on the positions whose logits are asked for.
    """

    layers: tuple[LayerCount, ...]
    vision: int = 0
    projector: int = 0
    other: int = 0
    head: int = 0

    @property
    def decoder(self) -> int:
        """All decoder layers together."""
        return sum(layer.total for layer in self.layers)

    @property
    def total(self) -> int:
        """The whole prefill."""
        return self.vision + self.projector + self.other + self.decoder + self.head

    def share_of(self, unpruned: FlopsCount) -> float:
        """This prefill's FLOPs over another's, text, vision tower and head included: the least share of its time."""
        return self.total / unpruned.total

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain numbers and lists, sums included."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers]} | {
            "decoder": self.decoder,
            "total": self.total,
        }

    def __str__(self) -> str:
        whole = sum(self.layers, LayerCount())
        rows = [("vision tower", self.vision), ("projector", self.projector), ("other", self.other)]
        rows += [(f"decoder {name}", count) for name, count in asdict(whole).items()]
        rows += [("head", self.head), ("total", self.total)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {_scaled(count):>10}" for name, count in rows if count)


def count_decoder(
    model: nn.Module,
    *,
    visual: int | Sequence[int],
    columns: int,
    layer: int | Sequence[int] | None = None,
    kept: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
    short: int | Sequence[int] | None = None,
    logits: int | None = None,
) -> FlopsCount:
    """Count a prefill's decoder layers and head from lengths alone; nothing runs.

    Args:
        model: the vision-language model.
        visual: visual tokens of each sample of the batch (an int: of the only one).
        columns: padded length T of the batch.
        layer: number of decoder layers that see every token, or several pruning layers, ascending; None for the
            unpruned prefill.
        kept: visual tokens of each sample that stay from `layer` on; with several pruning layers for each of them.
        short: padded length from `layer` on, or from each of several; by default what is left of the longest of
            samples that were as long as `columns`.
        logits: positions of each sample that the head runs on; all of them (None) by default.

    Raises:
        InputError: when the lengths do not fit each other.
        UnsupportedError: when a decoder layer does something whose FLOPs are not known.
    """
    family = family_of(model)
    before = [visual] if isinstance(visual, int) else list(visual)
    depth = len(family.layers)
    if (layer is None) != (kept is None):
        raise InputError(
            f"layer={layer} and kept={kept} belong together: give both, or neither for an unpruned prefill."
        )
    starts = () if layer is None else (layer,) if isinstance(layer, int) else tuple(layer)
    given: Sequence[Any] = () if kept is None else [kept] if isinstance(layer, int) or isinstance(kept, int) else kept
    stays = [_each(own) for own in given]
    for after in (before, *stays):
        if len(after) != len(before) or not all(0 <= k <= n <= columns for k, n in zip(after, before, strict=True)):
            raise InputError(
                f"kept={kept} of visual={visual} tokens in {columns} columns: expected 0 <= kept <= visual."
            )
    if any(not 0 <= start < depth for start in starts) or list(starts) != sorted(set(starts)):
        raise InputError(f"layer={layer}: expected 0 to {depth - 1} of {depth} layers.")
    lengths = [columns - min(n - k for k, n in zip(after, before, strict=True)) for after in stays]
    if short is not None:
        lengths = _each(short)
    if not len(starts) == len(stays) == len(lengths):
        raise InputError(f"layer={layer}, kept={kept} and short={short} differ in how many pruning layers there are.")
    stays, lengths = [before, *stays], [columns, *lengths]
    layers = []
    for index, flops in enumerate(family.layer_flops):
        stage = bisect_right(starts, index)
        keys = lengths[bisect_right(starts, family.key_layer(index))]
        layers.append(sum((flops.count(n, lengths[stage] - n, keys=keys) for n in stays[stage]), LayerCount()))
    # The head runs on hidden states that are back at full length.
    return FlopsCount(tuple(layers), head=_head(model) * len(before) * (columns if logits is None else logits))


def count_flops(model: nn.Module, inputs: Mapping[str, Any], *, pruning: Pruning | None = None) -> FlopsCount:
    """Count one prefill, part by part.

    The decoder layers and the head follow formulas (`topv.models.flops`): exact for the lengths that each layer sees,
    in eager attention's measure, which computes the whole rectangle of queries and keys whatever is masked. The vision
    tower, the projector and what else precedes the first layer run once, up to that layer, and are counted by the
    shapes of their products; pruning does not change them.

    Args:
        model: the vision-language model, its vision tower on eager or sdpa attention.
        inputs: what its processor returned, and `logits_to_keep` if it is to be passed.
        pruning: counts the prefill of `inputs` that this pruning has run last in the calling thread; None counts the
            unpruned prefill.

    Returns:
        The counts over the batch, padding included.

    Raises:
        InputError: when the inputs continue a cache, or the pruning ran other inputs.
        UnsupportedError: when a decoder layer does something whose FLOPs are not known, or the vision tower runs on an
            attention backend whose products cannot be seen.
    """
    family = family_of(model)
    cache = Signature(model).bind((), inputs).get(CACHE)
    if cache is not None and cache.get_seq_length() > 0:
        raise InputError("the inputs continue a KV cache: only a prompt that starts one can be counted.")
    ids = inputs["input_ids"]
    # Some models send separators to the experts of visual tokens too.
    marks = inputs.get("moe_mm_token_type_ids")
    visual = (family.placeholders(ids, inputs) if marks is None else marks.bool()).sum(1).tolist()
    logits = inputs.get("logits_to_keep") or None
    lengths: dict[str, Any] = {}
    if pruning is not None:
        columns, short = pruning.results.columns()
        tokens, kept = pruning.results.visual_tokens(), []
        if (len(tokens), columns) != tuple(ids.shape):
            raise InputError(
                f"the pruning's latest prefill was of {len(tokens)} x {columns} tokens, and the inputs are "
                f"{ids.shape[0]} x {ids.shape[1]}. Run the model on these inputs first."
            )
        for stage, length in enumerate(short):
            # What fills a row up to the padded length are the last of its pruned tokens.
            filled = [length - own for own in pruning.results.plan.row_lengths[stage]]
            gone = [max(0, n - after[stage] - slots) for (n, after), slots in zip(tokens, filled, strict=True)]
            kept.append([n - lost for n, lost in zip(visual, gone, strict=True)])
        lengths = {"layer": pruning.layers, "kept": kept, "short": short}
    decoder = count_decoder(model, visual=visual, columns=ids.shape[1], logits=logits, **lengths)
    before = _count_before(model, family, inputs)
    return FlopsCount(decoder.layers, before["vision"], before["projector"], before["other"], decoder.head)


def _each(value: int | Sequence[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _head(model: Any) -> int:
    """FLOPs of the head per position: 0 for a model without one."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        head = next((module for name, module in model.named_modules() if name.endswith("lm_head")), None)
    return 0 if head is None else 2 * int(head.in_features) * int(head.out_features)


class _FirstLayer(Exception):
    """The forward has come as far as it is to be counted."""


def _count_before(model: nn.Module, family: Family, inputs: Mapping[str, Any]) -> Counter[str]:
    """Run the model up to its first decoder layer, and count by part."""
    for name, module in model.named_modules():
        backend = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if module is not family.language_model and backend not in _COUNTED_ATTENTION and name:
            raise UnsupportedError(
                f"{name} runs on {backend}, whose products torch cannot see to count. Load the model with "
                "attn_implementation='sdpa' or 'eager'."
            )
    counter = _ShapeCounter()

    def stop(*_: Any) -> None:
        raise _FirstLayer

    with ExitStack() as stack:
        for part, module in _parts(family):
            stack.enter_context(_inside(counter, part, module))
        handle = family.layers[0].register_forward_pre_hook(stop, prepend=True)
        stack.callback(handle.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(counter)
        with suppress(_FirstLayer):
            model(**{**inputs, "use_cache": False})
    return counter.counts


def _parts(family: Family) -> Iterator[tuple[str, nn.Module]]:
    """The modules in which counting changes from the vision tower to another part."""
    decoder = set(family.language_model.modules())
    if family.language_model is not family.multimodal:
        yield "other", family.language_model
    for child in family.multimodal.children():
        for name, module in child.named_modules():
            if name.count(".") == 0 and name and module not in decoder and _PROJECTOR.search(name):
                yield "projector", module
    for name, module in family.multimodal.named_children():
        if module not in decoder and _PROJECTOR.search(name):
            yield "projector", module


@contextmanager
def _inside(counter: _ShapeCounter, part: str, module: nn.Module) -> Iterator[None]:
    """While `module` runs, what it computes counts as `part`."""

    def enter(*_: Any) -> None:
        counter.part.append(part)

    def leave(*_: Any) -> None:
        counter.part.pop()

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _ShapeCounter(TorchDispatchMode):
    """Counts what `torch.utils.flop_counter` counts, and the CPU's fused attention, which it misses."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.part = ["vision"]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            query, key, value = (tensor.shape for tensor in args[:3])
            pairs = query[0] * query[1] * query[2] * key[2]
            self.counts[self.part[-1]] += 2 * pairs * (query[3] + value[3])
            return func(*args, **kwargs)
        formula = flop_registry.get(packet)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        result = func(*args, **kwargs)
        if formula is not None:
            self.counts[self.part[-1]] += formula(*args, **kwargs, out_val=result)
        return result


def _scaled(count: int) -> str:
    """`count` FLOPs with a decimal unit.

    >>> _scaled(1_234_000_000)
    '1.23 GFLOP'
    """
    value = float(count)
    for unit in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {unit}FLOP"
        value /= 1000
    return f"{value:.3g} TFLOP"
