"""Serve a model pruned, with vLLM's own OpenAI-compatible server.

Images lose tokens between the vision tower and the decoder, so that prompts and their KV caches are shorter. Every
option that is not listed here is vLLM's: see `vllm serve --help=all`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import keep_value

TAKES_MORE = True

EPILOG = """\
examples:
  topv serve llava-hf/llava-1.5-7b-hf --keep 0.5
  topv serve Qwen/Qwen3-VL-8B-Instruct --keep 0.25 --port 8080 --tensor-parallel-size 2
  topv serve mini --dtype float32 --enforce-eager         the bundled model, on a CPU
  topv serve llava-hf/llava-1.5-7b-hf --keep 0.5 --trust-request-mm-kwargs
                                                          requests may set their own ratio, up to --max-keep:
                                                          "mm_processor_kwargs": {"topv_keep": 0.25}

A model, option or vLLM that cannot be served pruned is refused before the engine starts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv serve`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help='a hub id "owner/name", the directory of a saved model, or "mini" or "tiled", the bundled ones',
    )
    parser.add_argument(
        "--keep", type=keep_value, metavar="K", help="visual tokens to keep: a ratio such as 0.5, or a count (0.5)"
    )
    parser.add_argument(
        "--max-keep",
        type=float,
        default=1.0,
        metavar="R",
        help="largest ratio that a request may ask for, and that memory is set aside for (1.0)",
    )
    parser.add_argument(
        "--method",
        default="topv",
        metavar="SPEC",
        help="how to prune: topv, meancost, facilitylocation, uniform or random, with settings after a colon (topv)",
    )


def run(args: argparse.Namespace) -> int:
    """Check what was asked for, then run vLLM's server until it is stopped."""
    settings = _settings(args)
    from ..serve.supported import check_version

    check_version()
    _set_up()
    # These have moved from release to release, and the command itself imports them.
    from vllm.entrypoints.cli.serve import (
        FlexibleArgumentParser,
        ServeSubcommand,
        make_arg_parser,
        validate_parsed_serve_args,
    )

    from ..serve import engine_arguments
    from ..serve.checks import check_arguments

    parser = make_arg_parser(FlexibleArgumentParser(prog=f"topv serve {args.model}"))
    model, bundled = _folder(args.model)
    given = parser.parse_args([model, *args.more])
    if bundled and given.served_model_name is None:
        given.served_model_name = [args.model]
    overrides = given.hf_overrides if isinstance(given.hf_overrides, dict) else {}
    arguments = engine_arguments(model, settings, hf_overrides=overrides, revision=given.revision)
    given.hf_overrides = arguments["hf_overrides"]
    given.model = given.model_tag = model
    validate_parsed_serve_args(given)
    check_arguments(given)
    ServeSubcommand.cmd(given)
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    from ..ask.method_spec import split_methods
    from ..errors import InputError
    from ..methods.settings import read_settings
    from ..serve.settings import SERVED_METHODS, ServeSettings

    specs = split_methods([args.method])
    if len(specs) != 1:
        raise InputError(f"--method {args.method!r} names {len(specs)} methods. A server runs one.")
    name, texts = specs[0]
    if name not in SERVED_METHODS:
        return ServeSettings.read({"method": name}).to_dict()
    options = {**read_settings(name, texts), "method": name, "max_keep": args.max_keep}
    if args.keep is not None:
        if "keep" in options:
            raise InputError(f"--keep {args.keep} and --method {args.method!r} each set keep. Give one of them.")
        options["keep"] = args.keep
    return ServeSettings.read(options).to_dict()


def _set_up() -> None:
    """The environment that vLLM's own command sets up, and a limit on images before they are decoded."""
    import os

    from ..images import MAX_PIXELS

    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_MAX_IMAGE_PIXELS", str(MAX_PIXELS))


def _folder(name: str) -> tuple[str, bool]:
    """Where vLLM finds a model, and whether it is a bundled one, which is first written in vLLM's format."""
    from ..loading import BUNDLED, TILED

    if name not in (BUNDLED, TILED):
        return name, False
    import os

    from .. import __version__
    from ..mini import load_mini
    from ..serve import export_for_vllm

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    model, processor = load_mini(tiled=name == TILED)
    return str(export_for_vllm(model, processor, cache / "topv" / f"{name}-{__version__}")), True
