"""Prefill by stages, decoding and throughput of a model under several methods, in interleaved rounds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..methods import Method
from ..models import family_of
from ..runtime import Pruning, Report, prune
from .flops import count_flops
from .generation import decode, prefill, synchronizer
from .latency import Latency, Ratio, Stopwatch, measure_phases
from .stages import STAGES, Stages, StageTimes, marks_for

__all__ = ["Case", "Measurement", "bench", "flops_shares", "run_once"]


@dataclass(frozen=True)
class Case:
    """What to measure.

    Attributes:
        method: the method; None for the unpruned model.
        inputs: what the processor returned, on the model's device. All samples are of one length.
    """

    method: Method | None
    inputs: Mapping[str, Any]

    @property
    def batch(self) -> int:
        """Number of samples."""
        return int(self.inputs["input_ids"].shape[0])


@dataclass(frozen=True)
class Measurement:
    """What a case took.

    Attributes:
        case: what was measured.
        layer: layer at which pruning begins; for the unpruned model where its decoder is cut, to compare with others.
        visual_tokens: visual tokens of a sample.
        kept_tokens: those that stay.
        prompt_tokens: length of a sample.
        flops_share: FLOPs of the decoder layers in the prefill, over the unpruned model's.
        prefill_flops_share: FLOPs of the whole prefill, vision tower and head included, over the unpruned model's.
        stages: of each counted round.
        times: by phase: "prefill" is the time to first token, "decoder" its decoder layers with the selection, "decode"
            a token after the first (missing without any), "total" everything, "request" everything over the batch.
        selection_share: the selection's time over the baseline's time to first token, in the same round.
    """

    case: Case
    layer: int
    visual_tokens: int
    kept_tokens: int
    prompt_tokens: int
    flops_share: float
    prefill_flops_share: float
    stages: tuple[StageTimes, ...]
    times: Mapping[str, Latency]
    selection_share: Ratio

    @property
    def stage_medians(self) -> dict[str, float]:
        """Median seconds of each stage. In each round the stages add up to the whole; their medians nearly do."""
        found = [times.split(self.layer) for times in self.stages]
        return {stage: Latency(tuple(split[stage] for split in found)).median for stage in STAGES}

    @property
    def throughput_ratio(self) -> Ratio | None:
        """Requests in a given time over the baseline's: above 1 is more. None for the baseline itself."""
        ratios = self.times["request"].ratios
        return Ratio.of([1 / ratio for ratio in ratios]) if ratios else None

    @property
    def time_over_flops(self) -> Ratio | None:
        """The decoder layers' time over the baseline's, over the share of FLOPs: 1 is time that falls as FLOPs do."""
        return _over(self.times["decoder"], self.flops_share)

    @property
    def prefill_over_flops(self) -> Ratio | None:
        """The time to first token over the baseline's, over the share of all FLOPs in it."""
        return _over(self.times["prefill"], self.prefill_flops_share)


def _over(latency: Latency, share: float) -> Ratio | None:
    return Ratio.of([ratio / share for ratio in latency.ratios]) if latency.ratios else None


def flops_shares(model: Any, inputs: Mapping[str, Any], pruning: Pruning) -> tuple[float, float]:
    """FLOPs of the prefill of `inputs` that `pruning` has run last, over the unpruned prefill's: those of the decoder
    layers, and all of them, the vision tower and the head on one position included.

    Raises:
        UnsupportedError: when the model does something whose FLOPs are not known.
    """
    call = {**inputs, "logits_to_keep": 1}
    backend = model.config._attn_implementation
    # A backend does not change what is computed, but the products of some cannot be seen.
    countable = backend in ("eager", "sdpa")
    if not countable:
        model.set_attn_implementation("sdpa")
    try:
        pruned, whole = count_flops(model, call, pruning=pruning), count_flops(model, call)
    finally:
        if not countable:
            model.set_attn_implementation(backend)
    return pruned.decoder / whole.decoder, pruned.share_of(whole)


def bench(
    model: nn.Module,
    cases: Mapping[str, Case],
    *,
    baseline: str,
    decode_steps: int = 16,
    warmup: int = 2,
    rounds: int = 9,
    clock: Callable[[], float] = time.perf_counter,
    on_run: Callable[[], object] = lambda: None,
) -> dict[str, Measurement]:
    """Measure all cases in interleaved rounds.

    A CUDA device is waited for before and after a prefill, and before and after decoding; the stages of the prefill are
    told apart by events in the stream.

    Args:
        model: a vision-language model of transformers with its head, on the device of the inputs.
        cases: by name, what to measure.
        baseline: the case that ratios are taken to.
        decode_steps: greedy steps after the first token; 0 for the prefill alone.
        warmup: rounds that are run and forgotten.
        rounds: rounds that count.
        clock: returns seconds.
        on_run: called after each run, for progress bars.

    Returns:
        By name, what each case took.

    Raises:
        InputError: when a count is out of range, or the baseline is not among the cases.
    """
    if decode_steps < 0:
        raise InputError(f"decode_steps={decode_steps}: expected at least 0.")
    family = family_of(model)
    stages: dict[str, list[StageTimes]] = {name: [] for name in cases}
    reports: dict[str, Report] = {}
    shares: dict[str, tuple[float, float]] = {}
    wait = synchronizer(next(iter(cases.values())).inputs["input_ids"].device)

    def candidate(name: str, case: Case) -> Callable[[Stopwatch], None]:
        def run(watch: Stopwatch) -> None:
            with attached(model, case.method) as pruning:
                staged = Stages(family, marks_for(case.inputs["input_ids"].device, clock))
                with staged.watching():
                    wait()
                    with staged.run():
                        output, token = prefill(model, case.inputs)
                    wait()
                if decode_steps:
                    with watch.phase("decode"):
                        decode(model, case.inputs, output, token, decode_steps)
                if pruning is not None:
                    reports[name] = pruning.report()
                    if name not in shares:
                        shares[name] = flops_shares(model, case.inputs, pruning)
            times = staged.times()
            stages[name].append(times)
            seconds = watch.seconds
            whole = times.total + seconds.get("decode", 0.0)
            seconds |= {"prefill": times.total, "decoder": times.decoder, "total": whole, "request": whole / case.batch}
            if decode_steps:
                seconds["decode"] /= decode_steps

        return run

    with torch.inference_mode():
        tables = measure_phases(
            {name: candidate(name, case) for name, case in cases.items()},
            baseline=baseline,
            warmup=warmup,
            repetitions=rounds,
            clock=clock,
            synchronize=wait,
            on_run=on_run,
        )
    counted = {name: tuple(found[warmup:]) for name, found in stages.items()}
    cut = next((report.layer for report in reports.values()), min(2, len(family.layers) - 1))
    found = {}
    for name, case in cases.items():
        ids, report = case.inputs["input_ids"], reports.get(name)
        visual = int(family.placeholders(ids, case.inputs).sum()) // case.batch
        decoder_share, prefill_share = shares.get(name, (1.0, 1.0))
        found[name] = Measurement(
            case=case,
            layer=cut if report is None else report.layer,
            visual_tokens=visual,
            kept_tokens=visual if report is None else report.kept_tokens // case.batch,
            prompt_tokens=int(ids.shape[1]),
            flops_share=decoder_share,
            prefill_flops_share=prefill_share,
            stages=counted[name],
            times={phase: table[name] for phase, table in tables.items()},
            selection_share=_share_of_baseline(counted[name], counted[baseline]),
        )
    return found


def _share_of_baseline(own: Sequence[StageTimes], baseline: Sequence[StageTimes]) -> Ratio:
    return Ratio.of([a.selection / b.total for a, b in zip(own, baseline, strict=True)])


def run_once(model: nn.Module, case: Case, *, decode_steps: int) -> None:
    """Prefill and decode a case once, to see what it takes."""
    with torch.inference_mode(), attached(model, case.method):
        output, token = prefill(model, case.inputs)
        decode(model, case.inputs, output, token, decode_steps)


def attached(model: nn.Module, method: Method | None) -> contextlib.AbstractContextManager[Any]:
    """`prune` for a method; for None a block in which the model is as it is."""
    return contextlib.nullcontext() if method is None else prune(model, method)
