"""What a comparison of methods found, as data: the JSON output and the HTML report are views of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..measure.latency import Latency, Ratio

__all__ = ["SCHEMA", "Case", "Comparison", "MethodResult", "Summary"]

SCHEMA = "topv.compare/1"


@dataclass(frozen=True)
class MethodResult:
    """One method on one image and prompt.

    Attributes:
        label: the method with the settings that tell it apart, such as "topv keep=0.25".
        settings: all of the method's settings by name; None for the unpruned model.
        answer: what the model generated.
        correct: whether the answer is the expected one; None when none is known.
        visual_tokens: visual tokens in the prompt.
        kept_tokens: visual tokens that stayed.
        visual_flops_reduction: share of the decoder's FLOPs on visual tokens that was not spent.
        kv_bytes: bytes in the KV cache after the prefill.
        kv_bytes_unpruned: the same for the unpruned model.
        kept: cells of the kept tokens in the grid, ascending.
        recovered: those of them that were recovered.
        importance: the tokens' importance in raster order, or None.
        foreground_kept: share of the scene's foreground cells that were kept; None when unknown.
        prefill: time of the prefill, or None when it was not measured.
        decode: time of the decoding steps, or None.
    """

    label: str
    settings: dict[str, Any] | None
    answer: str
    correct: bool | None
    visual_tokens: int
    kept_tokens: int
    visual_flops_reduction: float
    kv_bytes: int
    kv_bytes_unpruned: int
    kept: tuple[int, ...]
    recovered: tuple[int, ...] = ()
    importance: tuple[float, ...] | None = None
    foreground_kept: float | None = None
    prefill: Latency | None = None
    decode: Latency | None = None

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        importance = self.importance
        return {
            "method": self.label,
            "settings": self.settings,
            "answer": self.answer,
            "correct": self.correct,
            "visual_tokens": self.visual_tokens,
            "kept_tokens": self.kept_tokens,
            "recovered_tokens": len(self.recovered),
            "visual_flops_reduction": None if math.isnan(self.visual_flops_reduction) else self.visual_flops_reduction,
            "kv_bytes": self.kv_bytes,
            "kv_bytes_unpruned": self.kv_bytes_unpruned,
            "foreground_kept": self.foreground_kept,
            "kept": list(self.kept),
            "recovered": list(self.recovered),
            "importance": None if importance is None else [x if math.isfinite(x) else None for x in importance],
            "prefill": None if self.prefill is None else self.prefill.to_dict(),
            "decode": None if self.decode is None else self.decode.to_dict(),
        }


@dataclass(frozen=True)
class Case:
    """One image and prompt under every method.

    Attributes:
        image_name: where the image came from.
        prompt: the question.
        expected: the true answer, when it is known.
        seen: the image as the model saw it.
        grid: shape (h, w) of its visual tokens.
        prompt_tokens: tokens of the whole prompt.
        results: one per method.
    """

    image_name: str
    prompt: str
    expected: str | None
    seen: Image.Image
    grid: tuple[int, int]
    prompt_tokens: int
    results: tuple[MethodResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """The case as JSON values, without the picture."""
        return {
            "image": self.image_name,
            "prompt": self.prompt,
            "expected": self.expected,
            "grid": list(self.grid),
            "prompt_tokens": self.prompt_tokens,
            "results": [result.to_dict() for result in self.results],
        }


@dataclass(frozen=True)
class Summary:
    """One method over all cases. Counts, bytes, shares and seconds are means over the cases.

    Attributes:
        label: the method.
        pruned: whether it is a method, rather than the unpruned model.
        right: number of right answers.
        asked: number of cases whose true answer is known.
        visual_tokens: visual tokens in the prompt.
        kept_tokens: visual tokens that stayed.
        visual_flops_reduction: share of the decoder's FLOPs on visual tokens that was not spent.
        kv_bytes: bytes in the KV cache after the prefill.
        kv_bytes_unpruned: the same for the unpruned model.
        foreground_kept: over the cases where it is known, or None.
        prefill_seconds: of the median prefill times, or None when not measured.
        decode_seconds: the same for decoding.
        prefill: ratio to the unpruned model, over all rounds of all cases; None for that model, or when not measured.
        decode: the same for decoding.
    """

    label: str
    pruned: bool
    right: int
    asked: int
    visual_tokens: float
    kept_tokens: float
    visual_flops_reduction: float
    kv_bytes: float
    kv_bytes_unpruned: float
    foreground_kept: float | None
    prefill_seconds: float | None
    decode_seconds: float | None
    prefill: Ratio | None
    decode: Ratio | None

    @classmethod
    def of(cls, results: Sequence[MethodResult]) -> Summary:
        """The summary of one method's results, one per case."""
        marks = [result.correct for result in results if result.correct is not None]
        prefills = [result.prefill for result in results if result.prefill is not None]
        decodes = [result.decode for result in results if result.decode is not None]
        mean = statistics.fmean
        shares = [result.foreground_kept for result in results if result.foreground_kept is not None]
        return cls(
            label=results[0].label,
            pruned=results[0].settings is not None,
            right=sum(marks),
            asked=len(marks),
            visual_tokens=mean(result.visual_tokens for result in results),
            kept_tokens=mean(result.kept_tokens for result in results),
            visual_flops_reduction=mean(result.visual_flops_reduction for result in results),
            kv_bytes=mean(result.kv_bytes for result in results),
            kv_bytes_unpruned=mean(result.kv_bytes_unpruned for result in results),
            foreground_kept=mean(shares) if shares else None,
            prefill_seconds=mean(latency.median for latency in prefills) if prefills else None,
            decode_seconds=mean(latency.median for latency in decodes) if decodes else None,
            prefill=_pooled(prefills),
            decode=_pooled(decodes),
        )

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON values."""
        ratios = {name: getattr(self, name) for name in ("prefill", "decode")}
        return {**vars(self), **{n: None if r is None else r.to_dict() for n, r in ratios.items()}}


def _pooled(latencies: Sequence[Latency]) -> Ratio | None:
    ratios = [ratio for latency in latencies for ratio in latency.ratios]
    return Ratio.of(ratios) if ratios else None


@dataclass(frozen=True)
class Comparison:
    """Everything `topv compare` found.

    Attributes:
        model: name, class, dtype, device and attention backend of the model.
        environment: the machine and its versions, from `Environment.to_dict`.
        device: the device in words.
        command: the command line that made it.
        date: UTC, ISO 8601.
        timing: how times were measured (repetitions, warmup, decode_steps, coverage of intervals), or None.
        cases: one per image and prompt.
    """

    model: dict[str, Any]
    environment: dict[str, Any]
    device: str
    command: str
    date: str
    timing: dict[str, float] | None
    cases: tuple[Case, ...] = field(default=())

    @property
    def summaries(self) -> list[Summary]:
        """One per method, in the order given."""
        if not self.cases:
            return []
        columns = zip(*(case.results for case in self.cases), strict=True)
        return [Summary.of(column) for column in columns]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values; `schema` names the layout and its version."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "date": self.date,
            "device": self.device,
            "model": self.model,
            "environment": self.environment,
            "timing": self.timing,
            "summary": [summary.to_dict() for summary in self.summaries],
            "cases": [case.to_dict() for case in self.cases],
        }
