"""Train a bundled model: ``python -m training.train --preset cpu --out runs/mini --minutes 60``.

Runs resume from the last checkpoint in ``--out``. ``--minutes`` is the length of the whole training, which fixes its
schedule; ``--run-minutes`` is the length of one run. The same command run again goes on with the same curve until the
training's minutes are used up.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    from .presets import PRESETS

    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--preset", default="cpu", choices=sorted(PRESETS), help="model size and schedule")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="folder of the training")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the whole training")
    parser.add_argument("--run-minutes", type=float, default=math.inf, help="length of this run; default: to the end")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
    parser.add_argument("--start", metavar="FOLDER", help="begin with these trained weights; bundled: the shipped ones")
    parser.add_argument("--processes", type=int, default=1, help="processes that train together, a thread each")
    parser.add_argument("--validate-minutes", type=float, default=4.0, help="time between validations")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the best weights so far there and stop")
    parser.add_argument("--plot", action="store_true", help="draw the curves to OUT/curves.png and stop")
    return parser


def _start_folder(name: str | None) -> Path | None:
    if name is None:
        return None
    from topv.mini import MINI_PATH

    folder = MINI_PATH if name == "bundled" else Path(name)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"--start {name}: no config.json in {folder}; give a model folder, or 'bundled'.")
    return folder


def _train(
    preset: str, out: Path, minutes: float, run_minutes: float, seed: int, start: Path | None, validate_minutes: float
) -> None:
    from .presets import get_preset
    from .trainer import Trainer

    Trainer(get_preset(preset), out, minutes, seed, start).run(
        validate_seconds=60 * validate_minutes, run_seconds=60 * run_minutes
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train, export or plot."""
    options = _parser().parse_args(arguments)
    from .presets import get_preset

    preset = get_preset(options.preset)
    if options.export is not None:
        from .export import export

        export(options.out, options.export)
        return
    if options.plot:
        from .curves import plot

        plot(options.out / "log.csv", options.out / "curves.png")
        return
    from .build import prepare_processor
    from .crew import launch

    start = _start_folder(options.start)
    prepare_processor(preset, options.out, start)
    launch(
        _train,
        options.processes,
        (
            preset.name,
            options.out,
            options.minutes,
            options.run_minutes,
            options.seed,
            start,
            options.validate_minutes,
        ),
    )


if __name__ == "__main__":
    main()
