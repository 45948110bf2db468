"""Convert an original InternVL2 checkpoint (`internvl_chat`) to transformers' own InternVL, which topv prunes."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """\
examples:
  topv convert ./InternVL2-2B ./InternVL2-2B-hf       two local folders

No code of the checkpoint is run. Weights and configuration are written; tokenizer files are copied as they are.
Decoders: InternLM2 (becomes a Llama), Qwen2 and Llama."""

_TOKENIZER_FILES = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.json",
                    "tokenizer.model", "vocab.json", "merges.txt", "generation_config.json")  # fmt: skip
_IMAGE_TOKEN = "<IMG_CONTEXT>"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv convert`."""
    parser.add_argument("source", type=Path, help="folder of the original checkpoint")
    parser.add_argument("destination", type=Path, help="folder to write")


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    from .console import output_console, print_line, quiet_transformers

    quiet_transformers()
    import json
    import shutil

    from ..errors import InputError
    from ..models.convert_internvl2 import convert_internvl2

    added = args.source / "added_tokens.json"
    tokens = json.loads(added.read_text(encoding="utf-8")) if added.is_file() else {}
    if _IMAGE_TOKEN not in tokens:
        raise InputError(
            f"{added} names no {_IMAGE_TOKEN!r}, whose id marks visual tokens. Give the whole folder of an original "
            "InternVL2 checkpoint."
        )
    if args.destination.resolve() == args.source.resolve():
        raise InputError(f"{args.destination} is the source itself. Give another folder to write.")
    convert_internvl2(args.source, args.destination, int(tokens[_IMAGE_TOKEN]))
    for name in _TOKENIZER_FILES:
        if (args.source / name).is_file():
            shutil.copyfile(args.source / name, args.destination / name)
    print_line(output_console(), f"{args.destination}: InternVLForConditionalGeneration, ready for from_pretrained")
    return 0
