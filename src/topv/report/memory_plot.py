"""Drawing memory profiles: one panel for each prompt, and the paper's figures for the model at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .memory import ArmMemory, PromptMemory
from .memory_paper import ARMS, BENCHMARKS, FIGURES

__all__ = ["draw_paper_figures", "draw_profile", "load_pyplot"]

_MIB = 2**20
_COLOURS = {"topv": "#0072b2", "none": "#5f5f5f", "fastv": "#d55e00"}
_OTHERS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b")
_DPI = 120


def load_pyplot() -> Any:
    """matplotlib's pyplot, drawing to files.

    Raises:
        InputError: when matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError("drawing needs matplotlib: pip install 'topv[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_profile(prompts: Sequence[PromptMemory], model: str, path: Path) -> None:
    """Draw dynamic memory over the generated tokens, a panel for each prompt and two lines for each arm.

    Args:
        prompts: the profiles.
        model: the model's name, for the title.
        path: PNG to write.
    """
    pyplot = load_pyplot()
    columns = min(2, len(prompts))
    rows = -(-len(prompts) // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(7.2 * columns, 4.2 * rows + 0.9), squeeze=False)
    panels = list(grid.flat)
    for axes in panels[len(prompts) :]:
        axes.set_visible(False)
    for axes, prompt in zip(panels, prompts, strict=False):
        for number, arm in enumerate(prompt.arms):
            first = next(i for i, other in enumerate(prompt.arms) if other.name == arm.name)
            colour = _COLOURS.get(arm.name) if first == number else None
            # Arms may coincide: the first are drawn broad, so that they show beneath the others.
            _draw_lines(axes, arm, colour or _OTHERS[number % len(_OTHERS)], width=max(1.0, 4.0 - number))
        axes.set_title(f"{_cut(prompt.prompt, 60)}\n{_cut(prompt.image, 60)}", fontsize=10)
        axes.set(xlabel="generated tokens", ylabel="dynamic memory, MiB", ylim=(0, None))
        axes.grid(alpha=0.3)
    static = prompts[0].baseline.timeline
    figure.suptitle(
        f"{model}: memory beside the weights ({static.static / _MIB:.1f} MiB), {static.source}", fontsize=11
    )
    _legend(figure, panels[:1], columns=len(prompts[0].arms))
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)


def draw_paper_figures(prompts: Sequence[PromptMemory], model: str, folder: Path) -> list[Path]:
    """Draw what the paper's Fig. 3 and Figs. 6 to 11 show, for the model that was profiled.

    Args:
        prompts: one profile for each of the paper's two benchmarks, in their order.
        model: the model's name, for the titles.
        folder: where to write the PNGs.

    Returns:
        The files: `figure-3.png`, with the six panels, and one for each of the six.
    """
    pyplot = load_pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (name, benchmark) in FIGURES.items():
        figure, axes = pyplot.subplots(figsize=(8, 5.4))
        _draw_total(axes, prompts[benchmark], name)
        axes.set_title(f"In the place of Figure {number}: {_title(model, name, benchmark)}", fontsize=10)
        _legend(figure, [axes], columns=3)
        paths.append(_save(pyplot, figure, folder / f"figure-{number}.png"))
    figure, grid = pyplot.subplots(2, 3, figsize=(16, 9.2), sharex=True, sharey="row")
    for benchmark, row in enumerate(grid):
        for place, (name, axes) in enumerate(zip(ARMS, row, strict=True)):
            _draw_total(axes, prompts[benchmark], name)
            axes.set_ylabel("memory, MiB" if place == 0 else "")
            axes.set_title(f"({'abcdef'[3 * benchmark + place]}) {_title(model, name, benchmark)}", fontsize=9)
    figure.suptitle("In the place of Figure 3: memory of TopV, the baseline and FastV on two tasks", fontsize=12)
    _legend(figure, grid[0], columns=5)
    return [_save(pyplot, figure, folder / "figure-3.png"), *paths]


def _title(model: str, name: str, benchmark: int) -> str:
    place = BENCHMARKS[benchmark]
    return f"{ARMS[name]}, {model},\nbundled task {place.task} (the paper: InternVL2-2B on {place.name})"


def _draw_lines(axes: Any, arm: ArmMemory, colour: str, width: float) -> None:
    samples = arm.timeline.samples
    steps = [sample.step for sample in samples]
    peaks, held = (
        [value / _MIB for value in values] for values in zip(*((s.peak, s.dynamic) for s in samples), strict=True)
    )
    axes.plot(steps, peaks, color=colour, linewidth=width, marker="o", markersize=width + 2, label=f"{arm.label}: peak")
    axes.plot(steps, held, color=colour, linewidth=width, linestyle=":", label=f"{arm.label}: held")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_total(axes: Any, prompt: PromptMemory, name: str) -> None:
    """Static and dynamic memory of one arm as areas, and the peaks of the other two as lines."""
    shown = [arm for arm in map(prompt.arm, ARMS) if arm is not None]
    arm = next(arm for arm in shown if arm.name == name)
    static = arm.timeline.static / _MIB
    samples = arm.timeline.samples
    steps = [sample.step for sample in samples]
    held = [static + sample.dynamic / _MIB for sample in samples]
    peaks = [static + sample.peak / _MIB for sample in samples]
    axes.fill_between(steps, 0, static, color="#e3e3e3", label="static: weights")
    axes.fill_between(
        steps, static, held, color=_COLOURS[name], alpha=0.35, label=f"{ARMS[name]}: held after the token"
    )
    axes.plot(
        steps, peaks, color=_COLOURS[name], marker="o", markersize=4, markerfacecolor="none", markeredgecolor="#c00000",
        label=f"{ARMS[name]}: peak in the token",
    )  # fmt: skip
    for other in shown:
        if other is not arm:
            line = [static + sample.peak / _MIB for sample in other.timeline.samples]
            axes.plot(
                steps,
                line,
                color=_COLOURS[other.name],
                linestyle="--",
                linewidth=1.2,
                label=f"{ARMS[other.name]}: peak, to compare",
            )
    axes.xaxis.get_major_locator().set_params(integer=True)
    dynamic = max(sample.peak for other in shown for sample in other.timeline.samples) / _MIB
    # The weights dwarf the rest: the axis begins just below their top, and says so.
    bottom, top = static - 0.22 * dynamic, static + 1.2 * dynamic
    axes.set(xlabel="generated tokens", ylabel="memory, MiB", xlim=(0.7, steps[-1] + 0.3), ylim=(bottom, top))
    middle = (steps[0] + steps[-1]) / 2
    axes.text(
        middle, static - 0.11 * dynamic, f"static: {static:.1f} MiB of weights (the axis does not begin at 0)",
        ha="center", va="center", fontsize=8,
    )  # fmt: skip
    axes.text(
        0.98, 0.96, f"{'unpruned' if name == 'none' else arm.label}\ndynamic: peak {arm.timeline.peak / _MIB:.2f} MiB, "
        f"at the end {held[-1] - static:.2f} MiB",
        ha="right", va="top", fontsize=9, transform=axes.transAxes,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip
    axes.grid(alpha=0.3)


def _legend(figure: Any, panels: Sequence[Any], columns: int) -> None:
    """One legend below all panels, each label once."""
    entries = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.tight_layout(rect=(0, 0.65 / figure.get_figheight(), 1, 1))
    figure.legend(entries.values(), entries, loc="lower center", ncols=columns, fontsize=8, frameon=False)


def _save(pyplot: Any, figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)
    return path


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
