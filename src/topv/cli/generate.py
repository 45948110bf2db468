"""Answer one question about one image with a pruned model, printed as it is generated."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .options import add_budget_options, add_model_options, positive_int

EPILOG = """\
examples:
  topv generate --image photo.jpg --prompt "What is written?"
  topv generate --image photo.jpg --prompt "What is this?" --method topv --keep 0.25 --report-tokens
  topv generate --image photo.jpg --prompt "What is this?" --method fastv:layer=3,keep=64
  topv generate --image photo.jpg --prompt "What is this?" --kv-share 0.6
  topv generate --image photo.jpg --prompt "What is this?" --method none

The answer goes to standard output, everything else to standard error."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv generate`."""
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="the image")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the question about it")
    parser.add_argument(
        "--method", default="topv", metavar="SPEC", help="how to prune (topv); none for the unpruned model"
    )
    add_budget_options(parser, several=False)
    parser.add_argument("--layer", type=positive_int, metavar="L", help="decoder layers that see every token (2)")
    parser.add_argument(
        "--report-tokens", action="store_true", help="say what was saved, on standard error, after the answer"
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Generate, streaming the answer."""
    from ..ask.method_spec import parse_methods
    from .console import progress, quiet_transformers

    specs = parse_methods(
        [args.method], keep=args.keep, visual_flops=args.visual_flops, kv_share=args.kv_share, layer=args.layer
    )
    from ..errors import InputError
    from ..images import open_image
    from ..loading import load_model

    if len(specs) != 1:
        raise InputError(f"--method {args.method!r} names {len(specs)} methods. `topv compare` runs several.")
    image = open_image(args.image)
    quiet_transformers()
    with progress(f"Loading {args.model}"):
        model, processor = load_model(args.model, dtype=args.dtype, device=args.device)

    import contextlib

    import torch

    from ..ask.prompts import build_inputs
    from ..runtime import prune
    from .streaming import SafeStreamer

    inputs = build_inputs(model, processor, image, args.prompt)
    method = specs[0].method
    streamer = SafeStreamer(processor.tokenizer, sys.stdout)
    attached = contextlib.nullcontext() if method is None else prune(model, method)
    with attached as pruning, torch.inference_mode():
        model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False, streamer=streamer)
    if args.report_tokens:
        print("nothing was pruned" if pruning is None else pruning.report(), file=sys.stderr)
    return 0
