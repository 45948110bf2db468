"""The paper's memory figures: what each shows, what was published, and the same of the model that was profiled here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .memory import PromptMemory, format_change
from .text import format_share

__all__ = ["ARMS", "BENCHMARKS", "FIGURES", "PUBLISHED_ABSTRACT", "Benchmark", "paper_table"]

ARMS = {"topv": "TopV", "none": "Baseline", "fastv": "FastV"}
"""The paper's names of the three arms, in the order of its Fig. 3."""


@dataclass(frozen=True)
class Benchmark:
    """One of the two benchmarks whose memory the paper shows, all on InternVL2-2B.

    Attributes:
        name: the benchmark.
        task: the bundled task that stands in for it.
        gigabytes: dynamic memory of each arm by its name, GB, from the paper's supplement, section A.
        reductions: TopV's savings against the baseline and FastV, as the same section states them.
    """

    name: str
    task: str
    gigabytes: dict[Literal["topv", "none", "fastv"], float]
    reductions: dict[Literal["none", "fastv"], float]


BENCHMARKS = (
    Benchmark("AI2D", "diagram", {"topv": 0.98, "none": 1.8, "fastv": 2.07}, {"none": 0.456, "fastv": 0.527}),
    Benchmark("OCRBench", "ocr", {"topv": 0.71, "none": 1.25, "fastv": 1.26}, {"none": 0.432, "fastv": 0.437}),
)
FIGURES = {6: ("topv", 0), 7: ("topv", 1), 8: ("none", 0), 9: ("none", 1), 10: ("fastv", 0), 11: ("fastv", 1)}
"""By figure number, the arm and the index of the benchmark; Fig. 3 shows the six side by side."""

VISUAL_FLOPS_REMOVED = {"topv": 0.48, "fastv": 0.47}
"""Share of visual FLOPs that each arm removes in these figures (supplement, section A)."""

PUBLISHED_ABSTRACT = (
    "The paper's summary claims 49-61 % less dynamic memory and does not say there against what; its supplement, for "
    "InternVL2-2B, says against what, and the table shows that."
)


def paper_table(prompts: Sequence[PromptMemory]) -> tuple[list[str], list[list[str]]]:
    """TopV's reductions of dynamic memory here beside the published ones, each with what it is relative to.

    Args:
        prompts: one profile for each of `BENCHMARKS`, in their order, each with the three arms.

    Returns:
        The header and the rows.
    """
    header = ["TopV against", "here: task", "at the peak", "at the end", "paper: InternVL2-2B on", "dynamic memory", ""]
    rows = []
    for benchmark, prompt in zip(BENCHMARKS, prompts, strict=True):
        topv = prompt.arm("topv")
        for name, published in benchmark.reductions.items():
            other = prompt.arm(name)
            if topv is None or other is None:
                continue
            ours, theirs = topv.timeline, other.timeline
            rows.append(
                [
                    "the baseline" if name == "none" else f"{ARMS[name]} ({other.label})",
                    benchmark.task,
                    format_change(ours.peak, theirs.peak),
                    format_change(ours.end.dynamic, theirs.end.dynamic),
                    benchmark.name,
                    f"−{format_share(published)}",
                    f"{benchmark.gigabytes[name]:g} GB to {benchmark.gigabytes['topv']:g} GB",
                ]
            )
    return header, rows
