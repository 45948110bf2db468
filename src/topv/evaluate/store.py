"""Answers on disk, batch by batch, so that work can be killed and go on, and several processes share it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError

__all__ = ["AnswerStore", "write_whole"]

_SETUP = "setup.json"


class AnswerStore:
    """A folder that holds what has been answered so far.

    Each batch is a line of a file that only one process writes, and is on disk before the next batch begins. A line
    that a kill cut short does not count.

    Args:
        folder: the folder, made if missing.
        setup: what the answers depend on, as plain values. A folder begun with another setup is refused.
        process: number of this process.

    Raises:
        InputError: when the folder holds other work, or cannot be written.
    """

    def __init__(self, folder: Path, setup: Mapping[str, Any], process: int = 0) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._check(json.loads(json.dumps(dict(setup))))
            self._path = folder / f"answers-{process}.jsonl"
            whole = "".join(line + "\n" for line in _whole_lines(self._path))
            write_whole(self._path, whole)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot keep answers in {folder}: {error.strerror or error}") from error

    def _check(self, setup: dict[str, Any]) -> None:
        path = self._folder / _SETUP
        if not path.exists():
            write_whole(path, json.dumps(setup, indent=1) + "\n")
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not what topv wrote. Choose another folder.") from error
        differing = sorted(name for name in {*begun, *setup} if begun.get(name) != setup.get(name))
        if differing:
            shown = "; ".join(f"{name}: {begun.get(name)!r} there, {setup.get(name)!r} now" for name in differing)
            raise InputError(
                f"{self._folder} holds work with another setup ({shown}). Give the same options to go on with it, or "
                "another folder."
            )

    def read(self) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """The answers of every batch that any process has finished, by configuration and number of the batch."""
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for path in sorted(self._folder.glob("answers-*.jsonl")):
            for line in _whole_lines(path):
                record = json.loads(line)
                found[record["configuration"], record["batch"]] = record["answers"]
        return found

    def add(self, configuration: str, batch: int, answers: Sequence[Mapping[str, Any]]) -> None:
        """Keep the answers of one batch."""
        record = {"configuration": configuration, "batch": batch, "answers": [dict(answer) for answer in answers]}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close this process's file."""
        self._file.close()


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file that were written to their end."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.split("\n")[:-1]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that nobody ever sees half of it, not even after a crash."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
