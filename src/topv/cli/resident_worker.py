"""Resident memory of one generation, measured in a fresh process: `python -m topv.cli.resident_worker < job`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError

__all__ = ["measure_resident"]

_MARK = "topv-resident:"


def measure_resident(job: dict[str, Any]) -> dict[str, Any]:
    """Run `job` in a fresh process and return what it measured.

    Args:
        job: "model", "dtype", "image" (a file), "prompt", "method" (a specification), "new_tokens", "full_logits" and
            "threads".

    Returns:
        "static", "once", "source" and "samples", each sample (step, dynamic, kv, peak), in bytes over the weights
        and, but for "once" itself, over "once" too.

    Raises:
        InputError: when the process fails, with the last line that it said.
    """
    from ..measure.resident import ALLOCATOR_SETTINGS

    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **ALLOCATOR_SETTINGS, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name],
        input=json.dumps(job),
        env=environment,
        capture_output=True,
        text=True,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines()
        raise InputError(
            f"resident memory of {job['method']!r} could not be measured: its process ended with "
            f"{done.returncode} ({lines[-1] if lines else 'it said nothing'}). Leave it out with --no-resident."
        )
    result: dict[str, Any] = json.loads(found[-1].removeprefix(_MARK))
    return result


def main() -> int:
    """Read a job from standard input, and print what it measured."""
    job = json.load(sys.stdin)
    import torch

    torch.set_num_threads(job["threads"])
    from ..ask.method_spec import parse_methods
    from ..ask.prompts import build_inputs
    from ..images import open_image
    from ..loading import load_model
    from ..measure.memory import profile_generation
    from ..measure.resident import ResidentMeter, settle, touch_weights
    from ..models import family_of
    from .console import quiet_transformers

    quiet_transformers()
    model, processor = load_model(job["model"], dtype=job["dtype"], device="cpu")
    (spec,) = parse_methods([job["method"]])
    inputs = build_inputs(model, processor, open_image(job["image"]), job["prompt"])
    touch_weights(model)
    text = inputs["input_ids"][:, ~family_of(model).placeholders(inputs["input_ids"])[0]][:, -1:]
    with torch.no_grad():
        model(input_ids=text)
    settle()
    over_weights = ResidentMeter()

    def profile(meter: ResidentMeter) -> Any:
        return profile_generation(
            model, inputs, spec.method, new_tokens=job["new_tokens"], full_logits=job["full_logits"], meter=meter
        )

    # The first run reads in the code of the operators it uses and lets libraries set themselves up.
    profile(over_weights)
    settle()
    over_first_run = ResidentMeter()
    timeline = profile(over_first_run).timeline
    samples = [(s.step, s.dynamic, s.kv, s.peak) for s in timeline.samples]
    once = over_first_run.base - over_weights.base
    print(_MARK + json.dumps({"static": timeline.static, "once": once, "source": timeline.source, "samples": samples}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
