"""Prefill and decode time of a model under pruning methods, as ratios to the unpruned model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..methods import Method
from ..runtime import prune
from ..runtime.arguments import cache_argument, output_cache
from .latency import LatencyTable, Stopwatch, measure_phases

__all__ = ["GenerationTiming", "decode", "prefill", "synchronizer", "time_generation"]


@dataclass(frozen=True)
class GenerationTiming:
    """How long prefill and decoding took under each method.

    Attributes:
        prefill: one forward over the prompt, image encoder included, that fills the KV cache.
        decode: `decode_steps` greedy steps from there, or None when there were none.
        decode_steps: number of decoding steps.
    """

    prefill: LatencyTable
    decode: LatencyTable | None
    decode_steps: int


def time_generation(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    methods: Mapping[str, Method | None],
    *,
    baseline: str = "none",
    decode_steps: int = 16,
    warmup: int = 1,
    repetitions: int = 7,
    on_run: Callable[[], object] = lambda: None,
) -> GenerationTiming:
    """Time the prefill and the decoding of one prompt under several methods, in interleaved rounds.

    Args:
        model: a vision-language model of transformers with its language-modelling head.
        inputs: what its processor returned, on the model's device.
        methods: by name, the methods to time; None is the unpruned model.
        baseline: the name to take ratios to; added as the unpruned model when it is not among `methods`.
        decode_steps: greedy steps after the prefill, each on one new token.
        warmup: rounds that are run and forgotten.
        repetitions: rounds that count.
        on_run: called after each run, for progress bars.

    Returns:
        Tables of prefill and decode times.

    Raises:
        InputError: when a count is out of range.
    """
    if decode_steps < 0:
        raise InputError(f"decode_steps={decode_steps}: expected at least 0.")
    if baseline not in methods:
        methods = {baseline: None, **methods}
    device = inputs["input_ids"].device

    def candidate(method: Method | None) -> Callable[[Stopwatch], None]:
        def run(watch: Stopwatch) -> None:
            with contextlib.nullcontext() if method is None else prune(model, method):
                _prefill_and_decode(model, inputs, decode_steps, watch)

        return run

    with torch.inference_mode():
        tables = measure_phases(
            {name: candidate(method) for name, method in methods.items()},
            baseline=baseline,
            warmup=warmup,
            repetitions=repetitions,
            synchronize=synchronizer(device),
            on_run=on_run,
        )
    return GenerationTiming(tables["prefill"], tables.get("decode"), decode_steps)


def synchronizer(device: torch.device) -> Callable[[], object]:
    """A function that waits until `device` has done all its work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def prefill(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Any, torch.Tensor]:
    """One forward over the prompt that fills a KV cache: its output, and the first token (B, 1), chosen greedily."""
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    return output, output.logits[:, -1:].argmax(-1)


def decode(model: nn.Module, inputs: Mapping[str, Any], output: Any, token: torch.Tensor, steps: int) -> None:
    """`steps` greedy steps from where `prefill` of these inputs left off."""
    mask = inputs.get("attention_mask")
    if mask is None:
        mask = torch.ones_like(inputs["input_ids"])
    one = mask.new_ones(token.shape[0], 1)
    for _ in range(steps):
        mask = torch.cat([mask, one], dim=1)
        output = model(
            input_ids=token,
            attention_mask=mask,
            **cache_argument(model, output_cache(output)),
            use_cache=True,
            logits_to_keep=1,
        )
        token = output.logits[:, -1:].argmax(-1)


def _prefill_and_decode(model: nn.Module, inputs: Mapping[str, torch.Tensor], steps: int, watch: Stopwatch) -> None:
    with watch.phase("prefill"):
        output, token = prefill(model, inputs)
    if not steps:
        return
    with watch.phase("decode"):
        decode(model, inputs, output, token, steps)
