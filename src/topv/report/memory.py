"""Memory profiles as rows of figures and as a table: peaks, what is held at the end, and what pruning took off both."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..measure.memory import GenerationMemory, MemoryTimeline
from .text import format_bytes, format_kept, format_share

__all__ = ["ArmMemory", "PromptMemory", "Resident", "format_change", "memory_rows", "memory_table", "write_rows"]


@dataclass(frozen=True)
class Resident:
    """Resident memory of a fresh process that ran one arm.

    Attributes:
        once: bytes over the weights that stayed after a first generation: code of libraries, their buffers.
        timeline: a second generation, over that.
    """

    once: int
    timeline: MemoryTimeline

    @property
    def peak(self) -> int:
        """Most bytes over the weights."""
        return self.once + self.timeline.peak


@dataclass(frozen=True)
class ArmMemory:
    """Memory of one generation by one arm.

    Attributes:
        label: the method and its settings.
        name: the method's name, "none" for the unpruned model.
        memory: token by token.
        resident: the same by the operating system's count, where it was taken.
        as_published: whether this is FastV with the whole attention map, as it was published.
    """

    label: str
    name: str
    memory: GenerationMemory
    resident: Resident | None = None
    as_published: bool = False

    @property
    def timeline(self) -> MemoryTimeline:
        """Memory token by token."""
        return self.memory.timeline


@dataclass(frozen=True)
class PromptMemory:
    """Memory of every arm on one prompt.

    Attributes:
        image: where the image came from.
        prompt: the question.
        arms: the arms, the unpruned model ("none") among them.
        task: the bundled task it is from, or None.
    """

    image: str
    prompt: str
    arms: tuple[ArmMemory, ...]
    task: str | None = None

    @property
    def baseline(self) -> ArmMemory:
        """The unpruned model."""
        return next(arm for arm in self.arms if arm.name == "none")

    @property
    def fastv(self) -> ArmMemory | None:
        """FastV: as published where it ran, else as it ran; None where it did not."""
        forms = [arm for arm in self.arms if arm.name == "fastv"]
        return next((arm for arm in forms if arm.as_published), forms[0] if forms else None)

    def arm(self, name: str) -> ArmMemory | None:
        """The first arm of a method, FastV's as published if there are several."""
        return self.fastv if name == "fastv" else next((arm for arm in self.arms if arm.name == name), None)


def memory_rows(prompts: Sequence[PromptMemory], provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each prompt, arm and token, in bytes, each with what it was measured with.

    Args:
        prompts: the profiles.
        provenance: columns to repeat on each row: model, device, versions.
    """
    rows = []
    for prompt in prompts:
        for arm in prompt.arms:
            samples = arm.timeline.samples
            resident = (None,) * len(samples) if arm.resident is None else arm.resident.timeline.samples
            for sample, second in zip(samples, resident, strict=True):
                rows.append(
                    {
                        "image": prompt.image,
                        "prompt": prompt.prompt,
                        "arm": arm.label,
                        "step": sample.step,
                        "static_bytes": arm.timeline.static,
                        "dynamic_bytes": sample.dynamic,
                        "kv_bytes": sample.kv,
                        "peak_bytes": sample.peak,
                        "source": arm.timeline.source,
                        "resident_bytes": "" if second is None else second.dynamic,
                        "resident_peak_bytes": "" if second is None else second.peak,
                        "resident_once_bytes": "" if arm.resident is None else arm.resident.once,
                        "resident_source": "" if arm.resident is None else arm.resident.timeline.source,
                        **provenance,
                    }
                )
    return rows


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows with the same keys as CSV, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def memory_table(prompt: PromptMemory) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of one prompt's table, dynamic memory throughout.

    Returns:
        Columns: the arm, its visual tokens, the peak and what is held at the end with their changes against the
        unpruned model and FastV, the fall of the KV cache by the formula, and how much of that the held memory fell.
    """
    base, fastv = prompt.baseline, prompt.fastv
    resident = any(arm.resident is not None for arm in prompt.arms)
    others = ["to none", *(["to FastV"] if fastv is not None else [])]
    header = ["arm", "visual tokens", "peak", *others, "at the end", *others, "KV by formula", "fall / KV's"]
    header += ["peak resident"] * resident
    rows = []
    for arm in prompt.arms:
        row = [arm.label, _tokens(arm, prompt)]
        for value in (_peak, _end):
            row.append(format_bytes(value(arm)))
            for other in (base, fastv)[: len(others)]:
                row.append("" if other is None or other is arm else format_change(value(arm), value(other)))
        row += list(_kv_columns(arm, base))
        if resident:
            row.append("" if arm.resident is None else _resident(arm.resident))
        rows.append(row)
    return header, rows


def format_change(value: float, other: float) -> str:
    """The change from `other` to `value` as a signed percentage.

    >>> format_change(54, 100), format_change(103, 100)
    ('−46.0 %', '+3.0 %')
    """
    sign = "−" if value <= other else "+"
    return f"{sign}{format_share(abs(1 - value / other))}"


def _peak(arm: ArmMemory) -> int:
    return arm.timeline.peak


def _end(arm: ArmMemory) -> int:
    return arm.timeline.end.dynamic


def _tokens(arm: ArmMemory, prompt: PromptMemory) -> str:
    report = arm.memory.report
    if report is not None:
        return format_kept(report.visual_tokens, report.kept_tokens)
    known = next((other.memory.report for other in prompt.arms if other.memory.report is not None), None)
    return "all" if known is None else str(known.visual_tokens)


def _kv_columns(arm: ArmMemory, base: ArmMemory) -> tuple[str, str]:
    report = arm.memory.report
    if report is None or report.kv_bytes == report.kv_bytes_unpruned:
        return "", ""
    fell = report.kv_bytes_unpruned - report.kv_bytes
    return f"−{format_share(fell / report.kv_bytes_unpruned)}", f"{(_end(base) - _end(arm)) / fell:.3f}"


def _resident(resident: Resident) -> str:
    return f"{format_bytes(resident.timeline.peak)} + {format_bytes(resident.once)} once"
