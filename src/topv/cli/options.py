"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..budget import validate_keep
from ..errors import InputError

__all__ = [
    "add_budget_options",
    "add_model_options",
    "check_plot",
    "check_writable",
    "keep_value",
    "left_share",
    "positive_int",
    "saved_share",
]

_PICTURES = (".png", ".svg", ".pdf")


def keep_value(text: str) -> float | int:
    """A keep ratio ("0.5") or a number of tokens ("64").

    Raises:
        ArgumentTypeError: when it is neither, or out of range.
    """
    try:
        number: float | int = int(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number: expected a ratio such as 0.5, or a count of tokens such as 64"
            ) from None
    try:
        return validate_keep(number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def saved_share(text: str) -> float:
    """A share in [0, 1) to save, such as "0.5".

    Raises:
        ArgumentTypeError: when it is none.
    """
    return _share(text, "a share in [0, 1), such as 0.5", lambda share: 0 <= share < 1)


def left_share(text: str) -> float:
    """A share in (0, 1] to leave, such as "0.6".

    Raises:
        ArgumentTypeError: when it is none.
    """
    return _share(text, "a share in (0, 1], such as 0.6", lambda share: 0 < share <= 1)


def _share(text: str, expected: str, fits: Callable[[float], bool]) -> float:
    try:
        share = float(text)
    except ValueError:
        share = float("nan")
    if not fits(share):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return share


def add_budget_options(parser: argparse._ActionsContainer, *, several: bool) -> None:
    """--keep, --visual-flops and --kv-share, of which one may be given; with `several`, with one value or more.

    Each becomes a list.
    """
    group = parser.add_mutually_exclusive_group()
    count: dict[str, Any] = {"nargs": "+" if several else 1, "default": []}
    each = "; each method runs with each" if several else ""
    group.add_argument(
        "--keep",
        type=keep_value,
        metavar="K",
        help="visual tokens to keep: a ratio such as 0.5, or a count such as 64 (1.0 is all of them, 1 is one)"
        f"{each} (0.5)",
        **count,
    )
    group.add_argument(
        "--visual-flops",
        type=saved_share,
        metavar="S",
        help="instead: keep as many as save this share of the decoder's FLOPs on visual tokens",
        **count,
    )
    group.add_argument(
        "--kv-share",
        type=left_share,
        metavar="S",
        help="instead: keep as many as leave this share of the prompt's KV cache",
        **count,
    )


def positive_int(text: str) -> int:
    """An integer of at least 1.

    Raises:
        ArgumentTypeError: when it is not.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer of at least 1")
    return number


def add_model_options(parser: argparse.ArgumentParser, *, answers: bool = True) -> None:
    """--model, --device, --dtype, and with `answers` --max-new-tokens."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="mini",
        metavar="NAME",
        help='"mini" (bundled, the default), "tiled" (its sibling on tiles), the directory of a saved model, or a hub '
        'id "owner/name"; '
        "safetensors only, and no code from the hub is run",
    )
    group.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1")
    group.add_argument(
        "--dtype", default="auto", help="auto (bfloat16 on CUDA, float32 on a CPU), float32, float16, bfloat16"
    )
    if not answers:
        return
    group.add_argument(
        "--max-new-tokens", type=positive_int, default=64, metavar="N", help="longest answer, in tokens (64)"
    )


def check_plot(path: Path, *, folder: bool = False) -> None:
    """Fail before the work rather than after it when `--plot` cannot be drawn. Nothing is created.

    Args:
        path: what `--plot` names.
        folder: whether that is a folder for several pictures.

    Raises:
        InputError: when matplotlib is missing, it draws no file of that ending, or nothing can be written there.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot draws with matplotlib, which is not installed: pip install 'topv[plot]'")
    if not folder:
        if path.suffix not in _PICTURES:
            raise InputError(f"--plot {str(path)!r}: expected a file that ends in {', '.join(_PICTURES)}.")
        check_writable(path, "--plot")
        return
    there = path if path.exists() else next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"--plot {str(path)!r} cannot be a folder to write in: {str(there)!r} is not a writable one.")


def check_writable(path: Path, option: str) -> None:
    """Fail before the work rather than after it when `path` cannot become a file. Nothing is created.

    Raises:
        InputError: when it is a directory, or lies where nothing can be written.
    """
    if path.is_dir():
        raise InputError(f"{option} {str(path)!r} is a directory. Expected the name of a file to write.")
    parent = next(directory for directory in path.absolute().parents if directory.exists())
    target = path if path.exists() else parent
    if not parent.is_dir() or not os.access(target, os.W_OK):
        raise InputError(f"{option} {str(path)!r} cannot be written: {str(target)!r} is not a writable place.")
