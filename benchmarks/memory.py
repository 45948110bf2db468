"""Peak memory of a prefill and a few tokens at a preset's shapes, each method in a process of its own.

    python benchmarks/memory.py --out docs/results/memory-peaks.csv

Live tensors are counted exactly, beyond the weights; resident memory (Linux) is what the system counts, beyond the
process with its weights in memory. Both are peaks over the whole generation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import common

METHODS = ("none", "topv:keep=0.5", "fastv:keep=0.5", "fastv:keep=0.5,attention=full")
MARK = "peaks:"


def measure(options: argparse.Namespace, spec: str) -> dict[str, int]:
    """The peaks of one method, in this process."""
    import torch

    from topv.ask.method_spec import parse_methods
    from topv.measure import kv_cache_bytes, profile_generation
    from topv.measure.random_model import build_random_model, random_inputs
    from topv.measure.resident import ResidentMeter, settle, touch_weights
    from topv.measure.shapes import preset
    from topv.runtime.arguments import output_cache

    shape = preset(options.preset)
    device, dtype = torch.device("cpu"), torch.float32
    model = build_random_model(shape, device=device, dtype=dtype, layers=options.layers)
    inputs = random_inputs(model, shape.picture, batch=options.batch, text_tokens=options.text)
    (parsed,) = parse_methods([spec])
    touch_weights(model)
    with torch.no_grad():
        cache = output_cache(model(input_ids=inputs["input_ids"][:, :1], use_cache=True))
    bytes_of_one = kv_cache_bytes(cache)
    settle()
    resident = ResidentMeter()
    first = profile_generation(model, inputs, parsed.method, new_tokens=options.tokens, meter=resident).timeline
    exact = profile_generation(model, inputs, parsed.method, new_tokens=options.tokens)
    report = exact.report
    whole = bytes_of_one * inputs["input_ids"].shape[1]
    return {
        "live_peak": exact.timeline.peak,
        "live_at_the_end": exact.timeline.end.dynamic,
        "kv_bytes_of_prefill": whole if report is None else report.kv_bytes,
        "resident_peak": first.peak,
    }


def main() -> None:
    """Measure, print, and write rows to a CSV file."""
    parser = common.parser(__doc__)
    parser.add_argument("--preset", default="llava-cpu")
    parser.add_argument("--layers", type=int, help="decoder layers (the preset's own)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--text", type=int, default=64, help="text tokens in the prompt")
    parser.add_argument("--tokens", type=int, default=4, help="tokens to generate")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args()
    if options.method is not None:
        print(MARK + json.dumps(measure(options, options.method)))
        return

    from topv.measure.resident import ALLOCATOR_SETTINGS

    made_with = common.provenance("cpu")
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        command = [sys.executable, *sys.argv, "--method", method]
        done = subprocess.run(command, env={**os.environ, **ALLOCATOR_SETTINGS}, capture_output=True, text=True)
        found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        if not found:
            raise SystemExit(f"{method} failed:\n{done.stderr[-2000:]}")
        peaks = json.loads(found[0].removeprefix(MARK))
        rows.append(
            {
                "method": method,
                **peaks,
                "preset": options.preset,
                "batch": options.batch,
                "text_tokens": options.text,
                "new_tokens": options.tokens,
                "dtype": "float32",
                **made_with,
            }
        )
        shown = ", ".join(f"{name.replace('_', ' ')} {value / 2**20:.1f} MiB" for name, value in peaks.items())
        print(f"{method}: {shown}", flush=True)
    common.write_rows(options.out, rows)


if __name__ == "__main__":
    main()
