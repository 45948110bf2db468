"""Time and memory of the selection by itself: what TopV adds to a prefill before it takes anything off.

    python benchmarks/selection.py --out docs/results/selection.csv
    python benchmarks/selection.py --parts device --device cuda --dtype bfloat16 --out selection-cuda.csv

Parts, all but the last on a CPU:

Tokens are ranked by coverage, which is TopV's default, and by the plan's demand.

- share: one picture of 576 tokens, 896 wide, as a LLaVA-shaped decoder of 24 layers hands it over, against that
  decoder's unpruned prefill, in interleaved rounds.
- tiles: 1 to 64 tiles of 256 tokens in one call; time per tile.
- large: one grid of 16,384 tokens in a process of its own; seconds, and resident memory beyond the inputs (Linux).
- device: one picture of 576 tokens, 4,096 wide, on a CUDA device by every backend; device events around replays of a
  CUDA graph, and around plain calls into a queue that is kept filled, as in a prefill.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import common
import topv
from topv.budget import keep_count
from topv.measure import measure_phases
from topv.measure.random_model import build_random_model, random_inputs
from topv.measure.shapes import preset
from topv.methods import Evidence, TopV
from topv.selection import select
from topv.transport import coverage, importance

DEFAULTS = TopV()
COST = DEFAULTS.cost_settings
SOLVER: dict[str, Any] = {name: getattr(DEFAULTS, name) for name in ("eps", "rho", "iterations")}
RANKINGS = ("coverage", "demand")
PARTS = ("share", "tiles", "large", "device")
FIELDS = (
    "part",
    "ranking",
    "backend",
    "grids",
    "tokens",
    "width",
    "dtype",
    "median_ms",
    "low_ms",
    "high_ms",
    "per_grid_ms",
    "share_of_prefill",
    "added_mib",
    "rounds",
)


@dataclass(frozen=True, kw_only=True)
class Capture(TopV):
    """TopV that also keeps the evidence it judged."""

    seen: list[Evidence] = field(default_factory=list)

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        self.seen.append(evidence)
        return super().score(evidence, count)


def cells(side: int) -> torch.Tensor:
    """(h, w) of a square grid's tokens."""
    return torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()


def tokens(batch: int, n: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Random sources, and targets that resemble them."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(batch, n, width, generator=generator)
    target = source + 0.3 * torch.randn(batch, n, width, generator=generator)
    return source.to(dtype), target.to(dtype)


def rank(
    ranking: str, source: torch.Tensor, target: torch.Tensor, places: torch.Tensor, backend: Any = "auto"
) -> torch.Tensor:
    """Scores (G, N) by which half of the tokens stay."""
    if ranking == "coverage":
        return coverage(source, target, places, source.shape[1] // 2, **COST)
    return importance("demand", source, target, places, **COST, **SOLVER, backend=backend)


def row(
    part: str, ranking: str, backend: str, shape: tuple[int, int, int], dtype: str, times: list[float], **more: Any
) -> dict[str, Any]:
    """One line of the table; times in seconds per call."""
    grids, n, width = shape
    return {
        "part": part,
        "ranking": ranking,
        "backend": backend,
        "grids": grids,
        "tokens": n,
        "width": width,
        "dtype": dtype,
        "median_ms": round(statistics.median(times) * 1e3, 4),
        "low_ms": round(min(times) * 1e3, 4),
        "high_ms": round(max(times) * 1e3, 4),
        "per_grid_ms": round(statistics.median(times) * 1e3 / grids, 4),
        "rounds": len(times),
        **more,
    }


def share(rounds: int, layers: int) -> list[dict[str, Any]]:
    """The selection on evidence of a model, in turns with the model's unpruned prefill."""
    shape = preset("llava-cpu")
    model = build_random_model(shape, dtype=torch.float32, device=torch.device("cpu"), layers=layers)
    inputs = random_inputs(model, shape.picture, batch=1, text_tokens=64)
    capture = Capture(keep=0.5)
    with torch.inference_mode():
        with topv.prune(model, capture):
            model(**inputs, logits_to_keep=1)
        evidence = capture.seen[0]
        grids, n, width = evidence.source.shape  # type: ignore[union-attr]
        count = keep_count(n, 0.5)

        def prefill(watch: Any) -> None:
            with watch.phase("all"):
                model(**inputs, use_cache=True, logits_to_keep=1)

        def selection(ranking: Any) -> Callable[[Any], None]:
            method = TopV(keep=0.5, importance=ranking)

            def run(watch: Any) -> None:
                with watch.phase("all"):
                    select(method.score(evidence, count), count)

            return run

        table = measure_phases(
            {"prefill": prefill, **{ranking: selection(ranking) for ranking in RANKINGS}},
            baseline="prefill",
            warmup=2,
            repetitions=rounds,
            synchronize=lambda: None,
        )["all"]
    rows = []
    for ranking in RANKINGS:
        ratio = table[ranking].ratio
        assert ratio is not None
        print(
            f"share: selection by {ranking} {table[ranking].median * 1e3:.2f} ms of a prefill of "
            f"{table['prefill'].median * 1e3:.0f} ms: {ratio.value:.3%} [{ratio.low:.3%}, {ratio.high:.3%}]"
        )
        times = list(table[ranking].seconds)
        rows.append(
            row("share", ranking, "auto", (grids, n, width), "float32", times, share_of_prefill=round(ratio.value, 6))
        )
    return rows


def tiles(rounds: int, width: int) -> list[dict[str, Any]]:
    """Time per tile, the numbers of tiles taking turns; each call is repeated until it takes 64 tiles' time."""
    source, target = tokens(64, 256, width, torch.float32)
    places = cells(16)
    counts = (1, 2, 4, 8, 16, 32, 64)
    cases = [(ranking, count) for ranking in RANKINGS for count in counts]
    times: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for number in range(rounds + 1):
        for ranking, count in cases:
            start = time.perf_counter()
            for first in range(0, 64, count):
                part = slice(first, first + count)
                rank(ranking, source[part], target[part], places)
            if number:
                times[ranking, count].append((time.perf_counter() - start) * count / 64)
    rows = [
        row("tiles", ranking, "auto", (count, 256, width), "float32", times[ranking, count]) for ranking, count in cases
    ]
    for line in rows:
        print(f"tiles by {line['ranking']}: {line['grids']:>3} tiles, {line['per_grid_ms']:.3f} ms each")
    return rows


LARGE = """
import ctypes, json, pathlib, sys, time, torch
sys.path.insert(0, {folder!r})
import selection
torch.set_num_threads({threads})
def solve(n, source, target):
    return selection.rank({ranking!r}, source, target, selection.cells(int(n**0.5)))
def resident(name):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) / 1024
inputs = selection.tokens(1, {n}, {width}, torch.{dtype})
solve(4900, *selection.tokens(1, 4900, {width}, torch.{dtype}))  # loads what it needs
ctypes.CDLL(None).malloc_trim(0)  # what the allocator kept of that would hide what comes
pathlib.Path("/proc/self/clear_refs").write_text("5")
before, start = resident("VmRSS"), time.perf_counter()
value = solve({n}, *inputs)
seconds = time.perf_counter() - start
assert value.isfinite().all()
print(json.dumps([seconds, resident("VmHWM") - before]))
"""


def large(width: int, dtype: str) -> list[dict[str, Any]]:
    """One grid of 16,384 tokens; the system counts what operations take within themselves as well."""
    n, rows = 16384, []
    for ranking in RANKINGS:
        code = LARGE.format(
            folder=str(Path(__file__).parent),
            threads=torch.get_num_threads(),
            n=n,
            width=width,
            dtype=dtype,
            ranking=ranking,
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        seconds, added = json.loads(done.stdout.splitlines()[-1])
        print(f"large by {ranking}: {n} tokens, {width} wide, {dtype}: {seconds:.1f} s, {added:.1f} MiB beyond inputs")
        rows.append(row("large", ranking, "auto", (1, n, width), dtype, [seconds], added_mib=round(added, 1)))
    return rows


def device(rounds: int, dtype: str) -> list[dict[str, Any]]:
    """One picture on a CUDA device, by coverage and by each backend of the solve."""
    shape = (1, 576, 4096)
    source, target = (x.cuda() for x in tokens(*shape, getattr(torch, dtype)))
    places = cells(24).cuda()
    rows = []
    for ranking, backend in (("coverage", "auto"), ("demand", "fused"), ("demand", "torch"), ("demand", "streaming")):

        def call(ranking: str = ranking, backend: str = backend) -> torch.Tensor:
            return rank(ranking, source, target, places, backend)

        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        for how, run in (("graph", graph.replay), ("queued", call)):
            times = device_times(run, rounds, filled=how == "queued")
            rows.append(row("device", ranking, f"{backend}, {how}", shape, dtype, times))
            print(f"device: {ranking}, {backend}, {how}: {rows[-1]['median_ms']:.4f} ms")
    return rows


def device_times(run: Callable[[], object], rounds: int, *, filled: bool) -> list[float]:
    """Seconds by device events; with ``filled``, behind work that keeps the device busy while the host queues it."""
    busy = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    times = []
    for number in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if filled:
            for _ in range(20):
                busy @ busy
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(start.elapsed_time(end) / 1e3)
    return times


def main() -> None:
    """Measure, print, and write rows to a CSV file."""
    parser = common.parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["share", "tiles", "large"])
    parser.add_argument("--layers", type=int, default=24, help="decoder layers of the prefill in 'share'")
    parser.add_argument("--width", type=int, default=896, help="of the tokens in 'tiles' and 'large'")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--threads", type=int, help="CPU threads (torch's own choice)")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    rows = []
    for part in options.parts:
        if part == "share":
            rows += share(options.rounds, options.layers)
        elif part == "tiles":
            rows += tiles(options.rounds, options.width)
        elif part == "large":
            rows += large(options.width, options.dtype)
        else:
            if options.device != "cuda":
                parser.error("part 'device' needs --device cuda")
            rows += device(options.rounds, options.dtype)

    made_with = common.provenance(options.device)
    common.write_rows(options.out, [{**line, **made_with} for line in rows], [*FIELDS, *made_with])


if __name__ == "__main__":
    main()
