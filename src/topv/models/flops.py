"""FLOPs of a decoder layer, read off its modules: exact integers, known before anything runs.

What is counted are the multiplications and additions of matrix products and convolutions, two for each pair, as
`torch.utils.flop_counter` counts them: norms, activations, softmax and rotary tables are not. An attention layer's
products are counted over the whole rectangle of queries and keys, whatever the mask: that is what eager attention
computes. A causal mask or a sliding window halves nothing there; fused kernels skip what it hides.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from ..errors import UnsupportedError
from .decoder import Decoder

__all__ = ["LayerCount", "LayerFlops", "Scan", "is_linear", "layer_flops", "output_projection", "unwrapped"]

_OUTPUTS = ("o_proj", "out_proj", "dense", "wo", "c_proj")
_TOP_K = ("top_k", "num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token")
_ELEMENTWISE = re.compile(r"Norm|Clip|Embedding|Statics")
_ROUTER = re.compile(r"Router|Gate", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:^|\.)experts\.(\d+)\.")
_DELTA_CHUNK = 64
"""Tokens that transformers' chunked delta rule takes at a time."""


@dataclass(frozen=True)
class LayerCount:
    """FLOPs of one decoder layer by kind.

    Attributes:
        projections: linear maps of the attention or of what stands in its place.
        products: queries with keys, and weights with values.
        mlp: dense MLP, and whatever linear maps a layer has beside.
        moe: router, the experts that run, and shared experts.
        mixer: the recurrence or convolution of a layer that has no attention.
    """

    projections: int = 0
    products: int = 0
    mlp: int = 0
    moe: int = 0
    mixer: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.projections + self.products + self.mlp + self.moe + self.mixer

    def __add__(self, other: LayerCount) -> LayerCount:
        return LayerCount(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: int) -> LayerCount:
        return LayerCount(*(getattr(self, f.name) * times for f in fields(self)))


@dataclass(frozen=True)
class Scan:
    """What a recurrent or convolutional mixer does beside its linear maps, for n > 0 tokens.

    `per_token` n + `per_call` + `per_chunk` c + `per_pair` (c + 1)^2, with c = ceil(n / `chunk`).
    """

    per_token: int = 0
    per_call: int = 0
    chunk: int = 1
    per_chunk: int = 0
    per_pair: int = 0

    def count(self, tokens: int) -> int:
        """FLOPs for a sequence of `tokens` tokens."""
        if tokens == 0:
            return 0
        chunks = -(-tokens // self.chunk)
        return self.per_token * tokens + self.per_call + self.per_chunk * chunks + self.per_pair * (chunks + 1) ** 2

    def __add__(self, other: Scan) -> Scan:
        chunked = self if self.per_chunk else other
        return Scan(
            self.per_token + other.per_token,
            self.per_call + other.per_call,
            chunked.chunk,
            chunked.per_chunk,
            chunked.per_pair,
        )


@dataclass(frozen=True)
class LayerFlops:
    """The FLOPs of one decoder layer as a polynomial in the length of one sequence.

    Attributes:
        projections: per token, the attention's linear maps.
        latents: per key, maps from a compressed cache to keys and values.
        products: per pair of a query and a key: 2 H (d_k + d_v) for H query heads.
        mlp: per token, dense linear maps outside the attention.
        moe: per visual token, router, top-k experts and shared experts.
        text_moe: the same per text token, where it differs (experts of each modality).
        scan: the recurrence and the convolutions, or None.
    """

    projections: int = 0
    latents: int = 0
    products: int = 0
    mlp: int = 0
    moe: int = 0
    text_moe: int = 0
    scan: Scan | None = None

    def count(self, visual: int, text: int = 0, *, keys: int | None = None) -> LayerCount:
        """FLOPs of the layer for one sequence.

        Args:
            visual: visual tokens in it.
            text: other tokens, padding included.
            keys: the keys that each of them attends to, by default as many as there are tokens.
        """
        tokens = visual + text
        seen = tokens if keys is None else keys
        return LayerCount(
            projections=self.projections * tokens + self.latents * seen,
            products=self.products * tokens * seen,
            mlp=self.mlp * tokens,
            moe=self.moe * visual + self.text_moe * text,
            mixer=0 if self.scan is None else self.scan.count(tokens),
        )


def layer_flops(decoder: Decoder, index: int) -> LayerFlops:
    """Read the FLOPs of decoder layer `index` off its modules.

    Linear maps count 2 * in_features * out_features per token, packed (quantized) or not, adapters included;
    convolutions 2 * out_channels * in_channels / groups * kernel per position; a mixture of experts its router, the
    top-k of its E expert weights (E, ., .), and its shared experts. Where the stock module runs every expert on every
    token (Llama 4), every expert is counted.

    Raises:
        UnsupportedError: when the layer holds parameters whose use is not known, or a recurrence without a formula.
    """
    layer: Any = decoder.layers[index]
    recurrent = decoder.is_recurrent(index)
    mixing = recurrent or decoder.keeps_keys(index)
    mixer: Any = decoder.attention(layer) if mixing else None
    in_mixer = set(mixer.modules()) if mixing else set()
    in_moe = _moe_modules(decoder, layer)
    sums = dict.fromkeys(("projections", "latents", "mlp", "moe", "text_moe"), 0)
    scan = Scan()
    for name, module in layer.named_modules():
        size = _size(decoder, layer, name, module)
        if isinstance(size, Scan):
            scan += size
        elif module in in_mixer:
            sums["latents" if "kv_b_proj" in name else "projections"] += size
        elif module in in_moe:
            for kind in ("moe", "text_moe"):
                sums[kind] += 0 if _other_modality(name, kind) else size
        else:
            sums["mlp"] += size
    if recurrent:
        scan += _recurrence(decoder, mixer)
    products = _products(decoder, mixer) if mixing and not recurrent else 0
    return LayerFlops(**sums, products=products, scan=None if scan == Scan() else scan)


def _size(decoder: Decoder, layer: Any, name: str, module: Any) -> int | Scan:
    """FLOPs per token of what `module` itself holds, not its children."""
    kind = type(module).__name__
    if is_linear(module):
        active = _is_active(decoder, layer, name)
        return 2 * module.in_features * module.out_features if active else 0
    own = {n: p for n, p in module.named_parameters(recurse=False) if p.ndim >= 2 and "bias" not in n}
    if "AltUp" in kind:
        raise _unknown(decoder, name, module)
    if not own or _ELEMENTWISE.search(kind):
        return 0
    if isinstance(module, nn.Conv1d):
        per_token = 2 * module.weight.numel()
        # Causal convolutions are padded on both sides, and what hangs over is computed too.
        return Scan(per_token=per_token, per_call=per_token * (module.kernel_size[0] - 1))
    if all(p.ndim == 3 for p in own.values()) and "Expert" in kind:
        experts = next(iter(own.values())).shape[0]
        runs = _top_k(decoder, layer, name, module) if _is_routed(module) else experts
        return int(2 * sum(p.numel() for p in own.values()) // experts * runs)
    if set(own) == {"proj"} and kind.endswith("RelativeLogits"):
        # A bias for each distance, out of a part of every head.
        return 2 * int(module.proj.numel()) * _heads(decoder.attention(layer))
    if set(own) == {"weight"} and module.weight.ndim == 2 and (_ROUTER.search(kind) or kind == "Conv1D"):
        return 2 * int(module.weight.numel())
    raise _unknown(decoder, name, module)


def is_linear(module: Any) -> bool:
    """Whether `module` is a linear map itself, and not an adapter's wrapper around one."""
    if not (hasattr(module, "in_features") and hasattr(module, "out_features")):
        return False
    return not any(hasattr(child, "in_features") for child in module.children())


def _is_routed(module: nn.Module) -> bool:
    """Whether experts are told which of them each token goes to, rather than all run on every token."""
    return any("ind" in name and "top" in name for name in inspect.signature(module.forward).parameters)


def _is_active(decoder: Decoder, layer: nn.Module, name: str) -> bool:
    """Whether a linear map runs on a token: of a list of experts the first top-k stand for those that do."""
    numbered = _NUMBERED.search(name)
    if numbered is None:
        return True
    experts = name[: numbered.start(1) - 1]
    return int(numbered.group(1)) < _top_k(decoder, layer, experts, layer.get_submodule(experts))


def _top_k(decoder: Decoder, layer: nn.Module, name: str, experts: nn.Module) -> int:
    block = layer.get_submodule(name.rpartition(".")[0]) if "." in name else layer
    holders: list[Any] = [block, *block.children(), experts, decoder.text_config]
    for holder in holders:
        for attribute in _TOP_K:
            value = getattr(holder, attribute, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    raise _unknown(decoder, name, experts)


def _moe_modules(decoder: Decoder, layer: nn.Module) -> set[nn.Module]:
    """The modules that make up a layer's mixture of experts, shared experts included."""
    routed = {m for name, m in layer.named_modules() if name.rpartition(".")[2] == "experts"}
    block = decoder.mlp(layer)
    if routed & set(block.modules()):
        return set(block.modules())
    found = routed | {m for m in layer.children() if _ROUTER.search(type(m).__name__)} if routed else set()
    return {inner for module in found for inner in module.modules()}


def _other_modality(name: str, kind: str) -> bool:
    """Whether the experts of this name serve the other modality than `kind` counts."""
    return ("text_moe" if kind == "moe" else "vision_moe") in name.split(".")


def _products(decoder: Decoder, attention: Any) -> int:
    """FLOPs of an attention layer per pair of a query and a key: 2 H (d_k + d_v), and its indexer's."""
    output = output_projection(attention)
    if output is None:
        raise _unknown(decoder, "attention", attention)
    values: int = output.in_features
    keys = values
    if getattr(attention, "v_head_dim", None) and getattr(attention, "qk_head_dim", None):
        keys = values // attention.v_head_dim * attention.qk_head_dim
    indexer = getattr(attention, "indexer", None)
    index = 0
    if indexer is not None:
        if not (hasattr(indexer, "weights_proj") and hasattr(indexer, "wk")):
            raise _unknown(decoder, "attention.indexer", indexer)
        index = 2 * indexer.n_heads * (indexer.head_dim + 1)
    return 2 * (keys + values) + index


def _heads(attention: Any) -> int:
    return int(attention.num_heads)


def output_projection(attention: nn.Module) -> Any:
    """The linear map from the heads' values to the hidden states, or None."""
    return next((m for name in _OUTPUTS if is_linear(m := unwrapped(getattr(attention, name, None)))), None)


def unwrapped(module: Any) -> Any:
    """The linear map inside an adapter's wrapper."""
    return getattr(module, "base_layer", module)


def _recurrence(decoder: Decoder, mixer: Any) -> Scan:
    """What a recurrent mixer computes beside its linear maps and convolutions."""
    if all(hasattr(mixer, name) for name in ("num_v_heads", "head_k_dim", "head_v_dim")):
        # The gated delta rule by chunks of C tokens, for each value head: two C x C products of keys and queries, two
        # triangular solves (C^2 a column), the weights with the values, and three products with the d_k x d_v state.
        size, keys, values = _DELTA_CHUNK, mixer.head_k_dim, mixer.head_v_dim
        inner = 4 * size**2 * keys + size**2 * (keys + values) + 2 * size**2 * values
        return Scan(chunk=size, per_chunk=mixer.num_v_heads * (inner + 6 * size * keys * values))
    if all(hasattr(mixer, name) for name in ("ssm_state_size", "chunk_size", "num_heads", "head_dim")):
        # Mamba 2 by chunks of C tokens, for each head: C x C products with the state size n and the head's width p,
        # each chunk's n x p state in and out, and the states of all chunks combined.
        size, state, width = mixer.chunk_size, mixer.ssm_state_size, mixer.head_dim
        inner = 2 * size**2 * (state + width) + 4 * size * state * width
        return Scan(chunk=size, per_chunk=mixer.num_heads * inner, per_pair=mixer.num_heads * 2 * state * width)
    if type(mixer).__name__.endswith("ShortConv"):
        return Scan()
    raise _unknown(decoder, "mixer", mixer)


def _unknown(decoder: Decoder, name: str, module: nn.Module) -> UnsupportedError:
    return UnsupportedError(
        f"{type(decoder.model).__name__}: the FLOPs of {type(module).__name__} ({name} of a decoder layer) cannot be "
        "counted, since topv does not know what it computes. Choose the budget by keep= or kv_share=, which need no "
        "such count."
    )
