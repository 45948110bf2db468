"""Tables, pages and pictures of benchmark rows."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import topv
from topv.errors import InputError
from topv.measure.bench import Case, Measurement
from topv.measure.bench_rows import BENCH_COLUMNS, Budget, Setting, bench_row, read_rows, write_rows
from topv.measure.latency import Latency, Ratio
from topv.measure.stages import StageTimes
from topv.report.bench_plot import plot_bench
from topv.report.bench_tables import bench_tables, format_ratio, performance_page

BASE = (2.0, 2.0, 2.0, 2.0, 2.0, 2.0)
INPUTS = {"input_ids": torch.zeros(2, 10, dtype=torch.long)}
SETTING = Setting(
    model="llava-cpu",
    parameters=1_500_000,
    decode_steps=4,
    rounds=6,
    warmup=1,
    dtype="float32",
    attention="sdpa",
    device=torch.device("cpu"),
    command="topv bench --preset llava-cpu",
    config={"layers": 4},
)


def measured(ratios: tuple[float, ...], *, share: float, method: topv.Method | None) -> Measurement:
    """A method that takes `ratios` times 2 s in the decoder, and half a second beside it."""
    seconds = {"prefill": [], "decoder": [], "decode": [], "total": [], "request": []}
    base = {"prefill": 2.5, "decoder": 2.0, "decode": 0.25, "total": 3.5, "request": 1.75}
    stages = []
    for ratio in ratios:
        stages.append(StageTimes(0.375, (0.5, 2 * ratio - 0.75), 0.25, 0.125))
        own = {"prefill": 2 * ratio + 0.5, "decoder": 2 * ratio, "decode": 0.25, "total": 2 * ratio + 1.5}
        for phase, value in {**own, "request": own["total"] / 2}.items():
            seconds[phase].append(value)
    times = {
        phase: Latency(tuple(values), () if method is None else tuple(value / base[phase] for value in values))
        for phase, values in seconds.items()
    }
    return Measurement(
        case=Case(method, INPUTS),
        layer=1,
        visual_tokens=8,
        kept_tokens=8 if method is None else 4,
        prompt_tokens=10,
        flops_share=share,
        prefill_flops_share=share + 0.1,
        stages=tuple(stages),
        times=times,
        selection_share=Ratio.of([0.1] * len(ratios)),
    )


def row(label: str, ratios: tuple[float, ...], share: float = 0.5, **changes: Any) -> dict[str, str]:
    method = None if label == "none" else topv.TopV(keep=0.5)
    settings = None if method is None else {"keep": 0.5}
    made = bench_row(
        SETTING, label, settings, measured(ratios, share=share, method=method), changes.pop("budget", None)
    )
    return made | changes


@pytest.fixture
def rows() -> list[dict[str, str]]:
    return [
        row("none", (1.0,) * 6, 1.0),
        row("topv keep=0.5", (0.5, 0.51, 0.52, 0.53, 0.54, 0.55)),
        row("fastv keep=0.5", (0.7, 0.8, 0.9, 0.98, 1.1, 1.2)),
    ]


def test_a_row_has_every_column_and_what_it_takes_to_measure_it_again(rows: list[dict[str, str]]) -> None:
    assert all(tuple(each) == BENCH_COLUMNS for each in rows)
    for name in ("model", "config", "method", "batch", "dtype", "attention", "device", "torch", "date", "command"):
        assert all(each[name] for each in rows), name
    plain, pruned, _ = rows
    assert plain["prefill_ratio"] == plain["settings"] == plain["selection_share"] == plain["throughput_ratio"] == ""
    assert pruned["settings"] == '{"keep": 0.5}'
    assert pruned["config"] == '{"layers": 4}'
    assert float(pruned["decoder_ms"]) == pytest.approx(1050)
    assert float(pruned["decoder_ratio"]) == pytest.approx(0.525)
    assert (float(pruned["decoder_ratio_low"]), float(pruned["decoder_ratio_high"])) == (0.5, 0.55)
    assert float(pruned["time_over_flops"]) == pytest.approx(1.05)
    assert float(pruned["requests_per_s"]) == pytest.approx(2 / 2.55, rel=1e-3)
    assert float(pruned["tokens_per_s"]) == pytest.approx(5 * 2 / 2.55, rel=1e-3)
    assert float(pruned["throughput_ratio"]) == pytest.approx(3.5 / 2.55, rel=1e-3)
    assert [float(pruned[f"{stage}_ms"]) for stage in ("encode", "before", "selection", "rest")] == [375, 500, 250, 125]
    assert pruned["coverage"] == "0.969"


@pytest.mark.parametrize(
    ("low", "value", "high", "swallowed"),
    [
        (0.5, 0.6, 0.7, False),
        (0.93, 0.98, 1.08, True),
        (0.5, 0.9, 0.99, True),
        (1.2, 1.3, 1.4, False),
        (1.01, 1.1, 1.5, True),
        (1.0, 1.0, 1.0, True),
    ],
)
def test_a_ratio_whose_spread_swallows_it_is_not_printed(
    low: float, value: float, high: float, swallowed: bool
) -> None:
    ratio = Ratio(value, low, high, 0.96)
    assert ratio.is_swallowed == swallowed
    cells = {"r": f"{value}", "r_low": f"{low}", "r_high": f"{high}", "r_clear": str(not ratio.is_swallowed).lower()}
    shown = format_ratio(cells, "r")
    assert shown == f"{'unclear' if swallowed else f'{value:.2f}'} ({low:.2f} to {high:.2f})"


def test_an_unclear_time_makes_its_share_of_flops_unclear(rows: list[dict[str, str]]) -> None:
    assert [each["decoder_ratio_clear"] for each in rows] == ["", "true", "false"]
    assert [each["time_over_flops_clear"] for each in rows] == ["", "true", "false"]


def test_tables(rows: list[dict[str, str]]) -> None:
    times, stages, throughput = bench_tables(rows)
    assert times.title == "Time, batch 2, 4 tokens after the first"
    assert [line[0] for line in times.rows] == ["none", "topv keep=0.5", "fastv keep=0.5"]
    assert times.rows[0][1:4] == ("8", "2500 ± 0.000", "1")
    assert times.rows[1][1] == "8 to 4 from layer 1"
    assert times.rows[2][3].startswith("unclear (")
    by_name = dict(zip(stages.header, stages.rows[1], strict=True))
    assert by_name["selection"] == "250"
    assert by_name["selection, of unpruned prefill"] == "10.00 % (10.00 to 10.00)"
    assert by_name["decoder, x unpruned"] == "0.53 (0.50 to 0.55)"
    assert times.rows[1][4:6] == ("0.600", "1.03 (1.00 to 1.07)")
    assert by_name["time / FLOPs share"] == "1.05 (1.00 to 1.10)"
    assert throughput.header[-1] == "throughput, x unpruned"
    assert all(len(line) == len(table.header) for table in (times, stages, throughput) for line in table.rows)


def test_batches_and_budgets_have_tables_of_their_own(rows: list[dict[str, str]]) -> None:
    budget = Budget(24, 2**30, limit=2)
    found = bench_tables([*rows, row("none", (1.0,) * 6, batch="4"), row("topv", (0.5,) * 6, budget=budget)])
    assert [table.title for table in found] == [
        "Time, batch 2, 4 tokens after the first",
        "Stages of the prefill, ms, batch 2",
        "Time, batch 4, 4 tokens after the first",
        "Stages of the prefill, ms, batch 4",
        "Throughput",
        "Throughput at the largest batch that fits 24 GiB",
    ]
    assert found[-1].rows[0][0] == "2 (largest tried)"
    assert found[-1].rows[0][-1] == "1"


def test_rows_survive_the_file(rows: list[dict[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.csv"
    write_rows(path, rows)
    assert read_rows(path) == rows


@pytest.mark.parametrize(
    ("content", "message"), [("", "lacks the columns"), ("a,b\n1,2\n", "lacks the columns model"), (None, "cannot be")]
)
def test_other_files_are_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_rows(path)


def test_the_page_names_commands_and_says_whether_a_gpu_ran(rows: list[dict[str, str]]) -> None:
    page = performance_page(rows)
    assert "`topv bench --preset llava-cpu`" in page
    assert '## llava-cpu {"layers": 4}, CPU' in page
    assert "intervals of 96.9 %" in page
    assert "Not yet run on a GPU" in page
    assert "| topv keep=0.5 | 8 to 4 from layer 1 |" in page
    on_gpu = [each | {"device_type": "cuda", "command": "topv bench --device cuda"} for each in rows]
    page = performance_page([*rows, *on_gpu])
    assert "Not yet run" not in page
    assert page.count("- Command:") == 2


def test_the_picture(rows: list[dict[str, str]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "deep" / "rows.png"
    plot_bench(rows, path)
    with Image.open(path) as image:
        assert image.width > image.height > 400
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=2**20)}
    # The selection's bar.
    assert (0xE4, 0x57, 0x56) in colours
    with pytest.raises(InputError, match="2 runs"):
        plot_bench([*rows, rows[0] | {"command": "another"}], path)
    with pytest.raises(InputError, match="--batch"):
        plot_bench([rows[0] | {"memory_gib": "24"}], path)


def test_without_matplotlib_the_error_names_the_extra(
    rows: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'topv\[plot\]'"):
        plot_bench(rows, tmp_path / "rows.png")
