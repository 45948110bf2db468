"""The entry point of the `topv` command."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence
from types import ModuleType

from .. import __version__
from ..errors import TopVError
from .methods_help import describe_methods

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "compare": "ask the same questions under several methods, side by side, with an HTML report",
    "generate": "answer one question about one image, pruned, as a stream",
    "run": "answer questions about a folder, glob or JSONL of images, to a JSONL of answers, with resume",
    "ui": "a page in the browser: ask about a picture, see which tokens stay and what they contribute",
    "eval": "accuracy of every method on the bundled tasks, at equal savings of visual FLOPs",
    "ablate": "vary one choice of TopV at a time: accuracy and foreground kept, on the validation split",
    "reproduce": "the paper's experiments as named recipes, published figures beside measured ones",
    "bench": "speed: time to first token by stages, decoding and throughput, as ratios to the unpruned model",
    "profile": "memory after every generated token, of the unpruned model and its rivals",
    "models": "which architectures are pruned exactly, and why the others cannot be",
    "serve": "serve a model pruned, with vLLM's OpenAI-compatible server",
    "convert": "an original InternVL2 checkpoint, for transformers and topv",
    "env": "show versions, device and attention backends, for bug reports",
}
"""Subcommand to summary. The module `topv.cli.<name>` defines `add_arguments(parser)` and `run(args) -> int`, its
docstring is the description and its `EPILOG` follows the options; it imports heavy libraries inside `run`. Options that
it does not define are left for it in `args.more`, where it sets `TAKES_MORE`."""

_DESCRIPTION = """\
Make vision-language models faster and smaller at inference by dropping the visual tokens they do not need.
No training: an image becomes hundreds of tokens, most of them redundant, and topv lets only the important
ones through to the deeper layers of the decoder."""

_EPILOG = """\
examples:
  topv compare                                        the bundled model on built-in pictures
  topv compare --report out.html                      ... and see which tokens stayed
  topv compare --image photo.jpg --prompt "What is written?" --methods none,fastv,topv --keep 0.5 0.25
  topv compare --model llava-hf/llava-1.5-7b-hf --image photo.jpg --prompt "What is written?"
  topv generate --image photo.jpg --prompt "What is this?" --keep 0.25 --report-tokens
  topv run photos --prompt "What is written?" --out answers.jsonl
  topv eval --questions 50                            accuracy with intervals, on questions of eight kinds

methods:
{methods}

the same from Python:
  model, processor = topv.load_mini()
  with topv.prune(model, topv.TopV(keep=0.5)) as pruning:
      ids = model.generate(**inputs)
  print(pruning.report())

`topv COMMAND --help` explains a command's options and what its numbers mean."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="topv",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(methods=describe_methods()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"topv {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    for name, summary in COMMANDS.items():
        module = _module(name)
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            epilog=getattr(module, "EPILOG", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    return parser


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"topv.cli.{command}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command and its options; leaves the process with a message where they do not fit."""
    parser = _parser()
    args, more = parser.parse_known_args(arguments)
    if more and not getattr(_module(args.command), "TAKES_MORE", False):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    args.more = more
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments after the program's name; those of the process by default.

    Returns:
        The exit code: 0, 2 after an error in what was asked for, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parse(arguments)
    args.command_line = ["topv", *arguments]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An answer may hold characters that the terminal's encoding lacks.
            stream.reconfigure(errors="replace")
    try:
        code: int = _module(args.command).run(args)
    except (TopVError, ValueError) as error:
        if args.debug:
            raise
        print(f"topv {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if args.debug:
            raise
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has left; closing stderr keeps the interpreter from complaining.
        sys.stderr.close()
        return 141
    return code
