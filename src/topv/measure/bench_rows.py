"""Rows of `topv bench`: one for each method and batch, with all that it takes to measure them again."""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..statistics import median_interval
from .bench import Measurement
from .environment import describe_environment
from .latency import Ratio
from .stages import STAGES

__all__ = ["BENCH_COLUMNS", "RATIOS", "Budget", "Setting", "bench_row", "read_rows", "write_rows"]

PHASES = ("prefill", "decoder", "decode", "total")
"""Phases with a time in a row: to the first token, in the decoder layers before it, per token after it, altogether."""

RATIOS = (*(f"{phase}_ratio" for phase in PHASES), "throughput_ratio", "time_over_flops", "prefill_over_flops")
"""Columns that hold a ratio to the unpruned model. With `_low` and `_high` behind the name its interval, with `_clear`
whether it may be quoted: "false" where the spread swallows the effect."""

BENCH_COLUMNS = (
    "model",
    "config",
    "parameters",
    "method",
    "settings",
    "layer",
    "batch",
    "memory_gib",
    "peak_gib",
    "max_batch",
    "visual_tokens",
    "kept_tokens",
    "prompt_tokens",
    "decode_steps",
    "flops_share",
    "prefill_flops_share",
    *(f"{phase}_{unit}" for phase in PHASES for unit in ("ms", "spread_ms")),
    *(f"{stage}_ms" for stage in STAGES),
    "requests_per_s",
    "tokens_per_s",
    *(f"{ratio}{end}" for ratio in RATIOS for end in ("", "_low", "_high", "_clear")),
    *(f"selection_share{end}" for end in ("", "_low", "_high")),
    "coverage",
    "rounds",
    "warmup",
    "dtype",
    "attention",
    "device_type",
    "device",
    "topv",
    "torch",
    "transformers",
    "python",
    "date",
    "command",
)
"""The columns, in their order. Cells that do not apply are empty."""


@dataclass(frozen=True)
class Setting:
    """What the rows of one run of `topv bench` share.

    Attributes:
        model: the preset's or the model's name.
        config: what was changed of it: decoder layers, tiles, pixels.
        parameters: their number.
        decode_steps: greedy steps after the first token.
        rounds: rounds that counted.
        warmup: rounds that did not.
        dtype: of the weights.
        attention: attention backend.
        device: where it ran.
        command: the command line.
    """

    model: str
    parameters: int
    decode_steps: int
    rounds: int
    warmup: int
    dtype: str
    attention: str
    device: torch.device
    command: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """The memory that a row's batch is the largest for.

    Attributes:
        gib: the memory in GiB.
        peak: bytes that the model and its run took of it at most.
        limit: largest batch that was tried.
    """

    gib: float
    peak: int
    limit: int


def bench_row(
    setting: Setting,
    label: str,
    settings: Mapping[str, Any] | None,
    measured: Measurement,
    budget: Budget | None = None,
) -> dict[str, str]:
    """A row of text cells.

    Args:
        setting: what the run's rows share.
        label: the method, as tables show it.
        settings: all of its settings; None for the unpruned model.
        measured: what it took.
        budget: the memory that its batch is the largest for, where it is.
    """
    batch, times = measured.case.batch, measured.times
    environment = describe_environment()
    row: dict[str, Any] = {
        "model": setting.model,
        "config": json.dumps(dict(setting.config)),
        "parameters": setting.parameters,
        "method": label,
        "settings": "" if settings is None else json.dumps(dict(settings)),
        "layer": measured.layer,
        "batch": batch,
        "visual_tokens": measured.visual_tokens,
        "kept_tokens": measured.kept_tokens,
        "prompt_tokens": measured.prompt_tokens,
        "decode_steps": setting.decode_steps,
        "flops_share": f"{measured.flops_share:.4f}",
        "prefill_flops_share": f"{measured.prefill_flops_share:.4f}",
        "requests_per_s": _significant(1 / times["request"].median),
        "tokens_per_s": _significant((1 + setting.decode_steps) / times["request"].median),
        "coverage": f"{median_interval(setting.rounds)[1]:.3f}",
        "rounds": setting.rounds,
        "warmup": setting.warmup,
        "dtype": setting.dtype,
        "attention": setting.attention,
        "device_type": setting.device.type,
        "device": environment.device_name(setting.device),
        **{name: environment.versions[name] for name in ("topv", "torch", "transformers", "python")},
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": setting.command,
    }
    if budget is not None:
        row |= {
            "memory_gib": f"{budget.gib:g}",
            "peak_gib": f"{budget.peak / 2**30:.4g}",
            "max_batch": budget.limit,
        }
    for phase in PHASES:
        if phase in times:
            row |= {f"{phase}_ms": _ms(times[phase].median), f"{phase}_spread_ms": _ms(times[phase].spread)}
            row |= _ratio(f"{phase}_ratio", times[phase].ratio)
    row |= {f"{stage}_ms": _ms(seconds) for stage, seconds in measured.stage_medians.items()}
    row |= _ratio("throughput_ratio", measured.throughput_ratio)
    # Time that falls as FLOPs do is a ratio of 1, so whether it is clear is up to the time.
    overs = {
        "time_over_flops": (measured.time_over_flops, "decoder"),
        "prefill_over_flops": (measured.prefill_over_flops, "prefill"),
    }
    for name, (over, phase) in overs.items():
        row |= _ratio(name, over) | {f"{name}_clear": row.get(f"{phase}_ratio_clear")}
    if measured.case.method is not None:
        row |= _interval("selection_share", measured.selection_share)
    return {name: "" if row.get(name) is None else str(row[name]) for name in BENCH_COLUMNS}


def _ratio(name: str, ratio: Ratio | None) -> dict[str, str]:
    if ratio is None:
        return {}
    return _interval(name, ratio) | {f"{name}_clear": str(not ratio.is_swallowed).lower()}


def _interval(name: str, ratio: Ratio) -> dict[str, str]:
    shown = {"": ratio.value, "_low": ratio.low, "_high": ratio.high}
    return {f"{name}{end}": f"{value:.5f}" for end, value in shown.items()}


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4f}"


def _significant(value: float) -> str:
    return f"{value:.5g}"


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows as CSV, a header first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, BENCH_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file that `write_rows` wrote.

    Raises:
        InputError: when there is no such file, or it holds something else.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read: {error}. Expected a CSV file of `topv bench --out`."
        ) from error
    missing = [name for name in BENCH_COLUMNS if name not in columns]
    if missing or not rows:
        what = f"lacks the columns {', '.join(missing[:3])}" if missing else "has no rows"
        raise InputError(f"{str(path)!r} {what}. Expected a CSV file of `topv bench --out`.")
    return rows
