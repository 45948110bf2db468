"""What a recipe runs: commands of lmms-eval and of topv itself, and what they found."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..measure.environment import describe_environment
from ..methods.settings import UNPRUNED
from .configurations import Configuration
from .lmms import INSTALL
from .recipe import Arm, Checkpoint, Recipe, method_text
from .runner import Answer

__all__ = ["Options", "Step", "bundled_steps", "checkpoint_steps", "missing", "read_answers", "read_scores", "run_step"]

_COMMAND = "command.json"


@dataclass(frozen=True)
class Options:
    """How a recipe is run.

    Attributes:
        work: folder for what the commands write; what is there already is not run again.
        checkpoints: folder with a folder for each checkpoint, by its name.
        model: the bundled model to use in place of the recipe's own, or None.
        device: "cpu", "cuda", ... as resolved.
        dtype: as the commands take it.
        tasks: tasks in place of the recipe's own, or None.
        questions: questions for each task; None for all that a benchmark has.
        include_path: a folder of lmms-eval tasks of one's own.
        image: the picture of a dialogue.
    """

    work: Path
    checkpoints: Path = Path("checkpoints")
    model: str | None = None
    device: str = "cpu"
    dtype: str = "auto"
    tasks: tuple[str, ...] | None = None
    questions: int | None = None
    include_path: Path | None = None
    image: Path | None = None


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        program: "topv" or "lmms-eval".
        arguments: its arguments.
        output: the file or, of lmms-eval, the folder that it writes.
        model: the checkpoint's or the bundled model's name.
        arm: the label of the arm that it runs, or None for all.
    """

    program: str
    arguments: tuple[str, ...]
    output: Path
    model: str
    arm: str | None = None

    def __str__(self) -> str:
        return shlex.join([self.program, *self.arguments])


def find_checkpoint(checkpoint: Checkpoint, folder: Path) -> str | None:
    """Where the checkpoint is: its folder in `folder`, or its hub name where the hub's cache holds it; else None."""
    own = folder / checkpoint.name
    if (own / "config.json").is_file():
        return str(own)
    if checkpoint.converted:
        return None
    from huggingface_hub import try_to_load_from_cache

    return checkpoint.hub if isinstance(try_to_load_from_cache(checkpoint.hub, "config.json"), str) else None


def missing(recipe: Recipe, options: Options) -> list[str]:
    """What a run on the paper's checkpoints lacks, in words; nothing where it can start."""
    reasons = []
    if recipe.kind == "benchmarks" and importlib.util.find_spec("lmms_eval") is None:
        reasons.append(f"lmms-eval is not installed. {INSTALL}")
    for checkpoint in recipe.models:
        if find_checkpoint(checkpoint, options.checkpoints) is None:
            own = options.checkpoints / checkpoint.name
            how = f"Download {checkpoint.hub} to {own}."
            if checkpoint.converted:
                how = f"Download {checkpoint.hub}, then: topv convert {checkpoint.hub.rpartition('/')[2]} {own}"
            reasons.append(f"{checkpoint.name} is not there. {how}")
    if recipe.kind == "dialogue" and options.image is None:
        reasons.append("The dialogue's picture is not there. Give one with --image.")
    return reasons


def checkpoint_steps(recipe: Recipe, options: Options) -> list[Step]:
    """The commands that run a recipe on the paper's checkpoints; those not found are named by their folder."""
    steps = []
    for checkpoint in recipe.models:
        where = find_checkpoint(checkpoint, options.checkpoints) or str(options.checkpoints / checkpoint.name)
        folder = options.work / "checkpoints" / checkpoint.name
        if recipe.kind == "benchmarks":
            steps += [_lmms_step(recipe, options, checkpoint, where, arm, folder) for arm in recipe.arms]
        elif recipe.kind == "dialogue":
            arguments = ["compare", "--model", where, "--prompt", recipe.prompt or "", "--no-timing"]
            arguments += ["--methods", *(_spec(arm, checkpoint.visual_flops) for arm in recipe.arms)]
            if options.image is not None:
                arguments += ["--image", str(options.image)]
            arguments += ["--max-new-tokens", "256", "--json", str(folder / "answers.json")]
            steps.append(_topv(options, arguments, folder / "answers.json", checkpoint.name))
        else:
            steps.append(_profile(options, where, folder, checkpoint.name))
    return steps


def bundled_steps(recipe: Recipe, options: Options) -> list[Step]:
    """The commands that run a recipe on a bundled model and bundled tasks."""
    stand_in = recipe.bundled
    model = options.model or stand_in.model
    folder = options.work / "bundled" / model
    if recipe.kind == "profile":
        return [_profile(options, model, folder, model)]
    tasks = options.tasks or stand_in.tasks
    arguments = ["eval", "--model", model, "--split", stand_in.split, "--no-foreground"]
    arguments += ["--methods", ",".join(_specs(recipe))]
    arguments += ["--reductions", f"{recipe.models[0].visual_flops:g}"]
    arguments += ["--tasks", ",".join(tasks)] if tasks else []
    arguments += ["--frames", str(stand_in.frames)] if stand_in.frames > 1 else []
    questions = options.questions or (3 if recipe.kind == "dialogue" else 40)
    arguments += ["--questions", str(questions)]
    # Answers to other questions, of other methods or of other versions are another evaluation.
    versions = describe_environment().versions
    of = [*arguments, *(f"{name} {versions[name]}" for name in ("topv", "torch", "transformers"))]
    folder /= hashlib.sha256("\0".join(of).encode()).hexdigest()[:8]
    arguments += ["--work", str(folder / "answers"), "--json", str(folder / "eval.json")]
    return [_topv(options, arguments, folder / "eval.json", model)]


def _topv(options: Options, arguments: Sequence[str], output: Path, model: str) -> Step:
    return Step("topv", (*arguments, "--device", options.device, "--dtype", options.dtype), output, model)


def _profile(options: Options, where: str, folder: Path, model: str) -> Step:
    arguments = ["profile", "--paper-figures", "--no-resident", "--model", where, "--out", str(folder)]
    return _topv(options, arguments, folder / "memory.md", model)


def _lmms_step(recipe: Recipe, options: Options, checkpoint: Checkpoint, where: str, arm: Arm, folder: Path) -> Step:
    name, settings = method_text(arm.method, budget={"visual_flops": checkpoint.visual_flops})
    model_args = {"pretrained": where, "base": checkpoint.base, "method": name, **settings}
    if options.device == "cpu" and checkpoint.base != "llava_hf":
        model_args["device_map"] = "cpu"
    tasks = options.tasks or tuple(benchmark.task for benchmark in recipe.benchmarks)
    # By what runs rather than by its label: two labels may stand for one method, which then runs once.
    output = folder / "".join(c if c.isalnum() or c in "=._" else "-" for c in _spec(arm))
    arguments = ["--model", "topv", "--model_args", ",".join(f"{key}={value}" for key, value in model_args.items())]
    arguments += ["--tasks", ",".join(tasks), "--batch_size", "1", "--device", options.device]
    arguments += ["--output_path", str(output), "--log_samples"]
    arguments += [] if options.questions is None else ["--limit", str(options.questions)]
    arguments += [] if options.include_path is None else ["--include_path", str(options.include_path)]
    return Step("lmms-eval", tuple(arguments), output, checkpoint.name, arm.label)


def _spec(arm: Arm, share: float | None = None) -> str:
    name, settings = method_text(arm.method, budget=None if share is None else {"visual_flops": share})
    return name + "".join(
        f"{',' if number else ':'}{key}={value}" for number, (key, value) in enumerate(settings.items())
    )


def _specs(recipe: Recipe) -> list[str]:
    """What `topv eval` is to compare: every method once."""
    return list(dict.fromkeys(_spec(arm) for arm in recipe.arms if arm.method is not None))


def run_step(step: Step) -> str:
    """Run a command, unless it was already run to its end; what it writes goes to a log beside its output.

    Returns:
        The date of the run, as 2026-01-31.

    Raises:
        InputError: when it fails, with the end of its log.
    """
    folder = step.output if step.program == "lmms-eval" else step.output.parent
    record = {"command": [step.program, *step.arguments], "versions": versions_of(step)}
    done, log = folder / _COMMAND, folder / "log.txt"
    if done.is_file() and _found(step):
        known = json.loads(done.read_text(encoding="utf-8"))
        if isinstance(known, dict) and {**known, **record} == known:
            return str(known["date"])
    folder.mkdir(parents=True, exist_ok=True)
    # What another run left would pass for what this one found.
    for old in (done, *_outputs(step)):
        old.unlink(missing_ok=True)
    module = {"topv": "topv", "lmms-eval": "lmms_eval"}[step.program]
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(
            [sys.executable, "-m", module, *step.arguments], stdout=file, stderr=subprocess.STDOUT
        ).returncode
    if code or not _found(step):
        # lmms-eval ends with status 0 after an error too; what it found tells.
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
        hint = " Without the paper's checkpoints and data sets there is --on bundled." if step.arm is not None else ""
        raise InputError(f"this command failed: {step}\n{tail}\nThe whole log: {log}.{hint}")
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    done.write_text(json.dumps({**record, "date": date}) + "\n", encoding="utf-8")
    return date


def versions_of(step: Step) -> dict[str, str]:
    """The versions of what a command runs."""
    versions = describe_environment().versions
    named = {name: versions[name] for name in ("topv", "torch", "transformers")}
    return named if step.program == "topv" else {**named, "lmms-eval": metadata.version("lmms_eval")}


def _found(step: Step) -> bool:
    return bool(_outputs(step))


def _outputs(step: Step) -> list[Path]:
    """The files that say that a command came to its end."""
    if step.program == "topv":
        return [step.output] if step.output.is_file() else []
    return list(step.output.rglob("*_results.json"))


def read_scores(step: Step, recipe: Recipe) -> dict[str, float]:
    """The scores of one run of lmms-eval by benchmark's title, or by task where the recipe has no such benchmark."""
    newest = max(step.output.rglob("*_results.json"), key=lambda path: path.stat().st_mtime)
    results: Mapping[str, Mapping[str, Any]] = json.loads(newest.read_text(encoding="utf-8"))["results"]
    known = {benchmark.task: benchmark for benchmark in recipe.benchmarks}
    scores = {}
    for task, metrics in results.items():
        benchmark = known.get(task)
        numbers = {
            key.partition(",")[0]: value
            for key, value in metrics.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and "," in key and "stderr" not in key
        }
        wanted = None if benchmark is None else benchmark.metric
        name = wanted if wanted in numbers else next(iter(numbers), None)
        if name is not None:
            scores[task if benchmark is None else benchmark.title] = float(numbers[name])
    return scores


def read_answers(step: Step, recipe: Recipe) -> tuple[list[Configuration], dict[str, dict[str, list[Answer]]]]:
    """The configurations of a bundled run under the recipe's labels, and their answers by key and task."""
    records: dict[str, Any] = json.loads(step.output.read_text(encoding="utf-8"))["answers"]
    by_spec = dict(zip((UNPRUNED, *_specs(recipe)), records.values(), strict=True))
    share = recipe.models[0].visual_flops
    arms = [arm for arm in recipe.arms if arm.method is not None]
    unpruned = next((arm for arm in recipe.arms if arm.method is None), Arm("unpruned", None))
    configurations, answers = [], {}
    for arm in (unpruned, *arms):
        configuration = Configuration(arm.label, None if arm.method is None else share, arm.method)
        configurations.append(configuration)
        answers[configuration.key] = {
            task: [Answer(**answer) for answer in found] for task, found in by_spec[_spec(arm)].items()
        }
    return configurations, answers
