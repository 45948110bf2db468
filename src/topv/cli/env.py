"""Show versions, devices, processor features and attention backends. Paste it into bug reports: it holds no
paths and no names of yours."""

from __future__ import annotations

import argparse

EPILOG = """\
what the lines mean:
  default dtype   what --dtype auto picks: bfloat16 on CUDA, else float32, since a CPU without bfloat16
                  instructions multiplies it hundreds of times slower
  attention       backends of transformers that can run here; topv works with each of them
  bundled model   whether the trained model that `--model mini` loads is part of this installation"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv env`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def run(args: argparse.Namespace) -> int:
    """Print the environment."""
    from .console import output_console, print_line, quiet_transformers

    quiet_transformers()
    from ..measure.environment import describe_environment

    environment = describe_environment()
    size = _bundled_bytes()
    dtype = "bfloat16" if environment.gpus else "float32"
    if args.json:
        import json

        values = {**environment.to_dict(), "default_dtype": dtype, "bundled_model_bytes": size}
        print(json.dumps(values, indent=2))
        return 0
    from ..report.text import format_bytes

    rows = [
        *environment.versions.items(),
        ("system", environment.system),
        ("cpu", environment.cpu),
        ("cpu threads", str(environment.cpu_threads)),
        ("cpu features", " ".join(environment.cpu_features) or "none of those topv looks for"),
        ("cuda devices", ", ".join(environment.gpus) or "none"),
        ("default dtype", dtype),
        ("attention", " ".join(environment.attention)),
        ("bundled model", f"present, {format_bytes(size)}" if size else "missing: reinstall topv"),
    ]
    console = output_console()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print_line(console, f"{name:<{width}}  {value}")
    return 0


def _bundled_bytes() -> int:
    """Size of the bundled model's weights, 0 when they are not there."""
    from ..mini import MINI_PATH

    return sum(file.stat().st_size for file in MINI_PATH.glob("*.safetensors"))
