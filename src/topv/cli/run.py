"""Answer questions about many images: a folder, glob or JSONL file in, a JSONL file of answers out.

Images of similar size are asked about in batches. A job that was killed goes on where it was when the same command is
given again, and loses and repeats nothing. A file that cannot be used becomes a row that says why."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .options import add_budget_options, add_model_options, check_writable, positive_int

if TYPE_CHECKING:
    from ..ask.job import JobItem
    from ..ask.method_spec import MethodSpec
    from ..evaluate import AnswerStore, Shard

EPILOG = """\
examples:
  topv run photos --prompt "What is written?" --out answers.jsonl
  topv run 'photos/**/*.jpg' --prompt "What is this?" --keep 0.25 --batch-size 16 --out answers.jsonl
  topv run questions.jsonl --out answers.jsonl --model llava-hf/llava-1.5-7b-hf
  accelerate launch --multi_gpu --num_processes 2 -m topv run photos --prompt "What is this?" --out answers.jsonl

questions.jsonl has a line for each question; paths count from the folder it lies in, "id" is optional:
  {"image": "photos/a.jpg", "prompt": "What is written?", "id": 17}

a row of answers.jsonl, in the order of the questions:
  image, prompt, id  the question, "id" where there is one
  answer             the answer; null where there is an error
  visual_tokens      in the prompt
  kept_tokens        left from the method's pruning layer on
  error              why there is no answer, or null

While it runs, answers are kept in the folder answers.jsonl.work beside the output, which keeps afterwards how they
were made (setup.json) and which questions shared a batch (plan.json). The output is there once it is complete.
The exit code is 1 where not one question could be answered."""

_PLAN = "plan.json"
_CONFIGURATION = "run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv run`."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a folder, glob, image file or JSONL file")
    parser.add_argument("--prompt", metavar="TEXT", help="the question, where a JSONL file does not give one")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSONL file of answers to write")
    parser.add_argument(
        "--method", default="topv", metavar="SPEC", help="how to prune (topv); none for the unpruned model"
    )
    add_budget_options(parser, several=False)
    parser.add_argument("--layer", type=positive_int, metavar="L", help="decoder layers that see every token (2)")
    parser.add_argument("--batch-size", type=positive_int, default=8, metavar="N", help="questions per batch (8)")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Answer what is left to answer, and write the output once all is answered."""
    check_writable(args.out, "--out")
    from ..ask.method_spec import parse_methods

    specs = parse_methods(
        [args.method], keep=args.keep, visual_flops=args.visual_flops, kv_share=args.kv_share, layer=args.layer
    )
    if len(specs) != 1:
        raise InputError(f"--method {args.method!r} names {len(specs)} methods. Run the job once for each.")
    from ..ask.job import read_items

    items = read_items(args.sources, args.prompt)
    from ..evaluate import Shard
    from ..loading import load_model
    from .console import progress, quiet_transformers

    quiet_transformers()
    work = args.out.with_name(args.out.name + ".work")
    if args.out.exists() and not (work / "setup.json").exists():
        raise InputError(f"--out {str(args.out)!r} is there already, and topv run did not write it. Give another name.")
    shard = Shard.of_environment()
    with progress(f"Loading {args.model}"):
        model, processor = load_model(args.model, dtype=args.dtype, device=args.device)
    store = _store(args, specs[0], items, model, work, shard.process)
    if not args.out.exists():
        batches = _plan(work / _PLAN, items, args.batch_size)
        _answer(args, specs[0], items, model, processor, batches, store, shard)
        shard.wait_for_all()
        if shard.process == 0:
            _write(args.out, len(items), batches, store)
    store.close()
    if shard.process:
        return 0
    for path in work.glob("answers-*.jsonl"):
        path.unlink()
    return _summarise(args.out)


def _store(
    args: argparse.Namespace, spec: MethodSpec, items: Sequence[JobItem], model: Any, work: Path, process: int
) -> AnswerStore:
    """The folder of the job, for this setup."""
    from ..ask.job import digest
    from ..evaluate import AnswerStore
    from ..measure import describe_environment

    versions = describe_environment().versions
    setup = {
        "questions": len(items),
        "questions_digest": digest(items),
        "model": args.model,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype),
        "device": model.device.type,
        "method": "none" if spec.method is None else repr(spec.method),
        "batch_size": args.batch_size,
        "max_new_tokens": args.max_new_tokens,
        "versions": {name: versions[name] for name in ("topv", "torch", "transformers")},
    }
    return AnswerStore(work, setup, process)


def _plan(path: Path, items: Sequence[JobItem], batch_size: int) -> list[list[int]]:
    """Which items share a batch, as decided when the job began: files may change while it is down."""
    from ..ask.job import plan_batches
    from ..evaluate import write_whole

    if not path.exists():
        write_whole(path, json.dumps(plan_batches(items, batch_size)))
    batches: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
    return batches


def _answer(
    args: argparse.Namespace,
    spec: MethodSpec,
    items: Sequence[JobItem],
    model: Any,
    processor: Any,
    batches: Sequence[Sequence[int]],
    store: AnswerStore,
    shard: Shard,
) -> None:
    """Answer this process's batches that no process has answered."""
    from ..ask.batch import BatchAsker
    from .job_progress import job_progress

    mine = [number for number in range(len(batches)) if number % shard.processes == shard.process]
    done = store.read()
    left = [number for number in mine if (_CONFIGURATION, number) not in done]
    total, rest = (sum(len(batches[number]) for number in numbers) for numbers in (mine, left))
    with (
        BatchAsker(model, processor, spec.method, max_new_tokens=args.max_new_tokens) as asker,
        job_progress("Answering", total, total - rest, bar=shard.process == 0) as advance,
    ):
        for number in left:
            store.add(_CONFIGURATION, number, asker.ask([items[place] for place in batches[number]]))
            advance(len(batches[number]))


def _write(path: Path, count: int, batches: Sequence[Sequence[int]], store: AnswerStore) -> None:
    """The rows of all batches in the order of the questions, in a file that is whole as soon as it is there."""
    from ..evaluate import write_whole

    rows: list[dict[str, Any]] = [{}] * count
    for (_, number), answers in store.read().items():
        for place, row in zip(batches[number], answers, strict=True):
            rows[place] = row
    write_whole(path, "".join(_line(row) for row in rows))


def _line(row: dict[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        # A file name may hold bytes that are no text.
        line = json.dumps(row)
    return line + "\n"


def _summarise(path: Path) -> int:
    """Say on standard error what became of the questions."""
    with path.open(encoding="utf-8") as file:
        errors = [json.loads(line)["error"] is not None for line in file]
    failed = f", {sum(errors)} of them with an error" if any(errors) else ""
    print(f"{path}: {len(errors)} rows{failed}", file=sys.stderr)
    return 1 if errors and all(errors) else 0
