"""The scripts that run benchmarks one after another: their steps, and that every command they give can be read."""

import argparse
import importlib
import os
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from topv.cli.main import parse

ROOT = Path(__file__).parents[2]
SCRIPTS = ("accelerator.sh", "bundled.sh")
RECORDER = """#!/usr/bin/env bash
printf '%s\\x1f' "$@" >> "$RECORD"
printf '\\n' >> "$RECORD"
"""


def run(script, *steps, **environment):
    command = ["bash", str(ROOT / "benchmarks" / script), *steps]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)


def steps_of(script, work):
    return run(script, WORK=str(work)).stdout.removeprefix("steps: ").split()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The commands of every step of both scripts, given to something that only writes them down."""
    folder = tmp_path_factory.mktemp("scripts")
    recorder, record = folder / "python", folder / "record"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    for script in SCRIPTS:
        work = folder / script
        for model in ("mini", "mini-tiled"):
            (work / model / "best").mkdir(parents=True)
            (work / f"{model}-weights").mkdir()
            (work / f"{model}-weights" / "model-00001-of-00002.safetensors").write_text("x")
            for name in ("log.csv", "curves.png", "last.json", "last.safetensors", "best/model.safetensors"):
                (work / model / name).write_text("x")
        found = run(script, *steps_of(script, work), WORK=str(work), OUT=str(folder / f"{script}-out"),
                    PYTHON=str(recorder), RECORD=str(record))  # fmt: skip
        assert found.returncode == 0, found.stderr
    return folder, [line.split("\x1f")[:-1] for line in record.read_text().splitlines()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_steps_are_listed_and_known(script, tmp_path):
    text = (ROOT / "benchmarks" / script).read_text()
    for step in steps_of(script, tmp_path):
        assert re.search(rf"^{step}\(\)", text, re.MULTILINE), step
    refused = run(script, "pictures", "nothing", WORK=str(tmp_path), PYTHON="false")
    assert refused.returncode == 2
    assert "unknown step" in refused.stderr


def start(name, *arguments):
    """What Python would start: a module's main behind -m, else a file."""
    if name == "-m":
        importlib.import_module(arguments[0]).main(arguments[1:])
    else:
        runpy.run_path(name, run_name="__main__")


class Parsed(Exception):
    """Raised in place of the work behind a command line."""


def test_every_command_is_understood(recorded, monkeypatch):
    """By the parser of the very command, so that no option is misspelt when an accelerator is at hand."""
    original = argparse.ArgumentParser.parse_args

    def stop(self, *arguments, **keywords):
        original(self, *arguments, **keywords)
        raise Parsed

    monkeypatch.chdir(ROOT)
    commands = recorded[1]
    assert len(commands) > 25
    for command in commands:
        if command[:2] == ["-m", "topv"]:
            parse(command[2:])
        elif command[:2] != ["-m", "pytest"]:
            with monkeypatch.context() as patched:
                patched.setattr(argparse.ArgumentParser, "parse_args", stop)
                patched.setattr(sys, "argv", command)
                # As Python does for a script.
                patched.syspath_prepend(str((ROOT / command[0]).parent))
                with pytest.raises(Parsed):
                    start(*command)


def test_results_are_packed_without_checkpoints(recorded):
    pieces = sorted((recorded[0] / "accelerator.sh-out").iterdir())
    assert [piece.name for piece in pieces] == ["results.tar.gz.aa"]
    with tarfile.open(pieces[0]) as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
    exported = "model-00001-of-00002.safetensors"
    assert {f"mini-weights/{exported}", f"mini-tiled-weights/{exported}", "mini-tiled-weights/log.csv"} <= names
    assert not [name for name in names if "best" in name or "last.safetensors" in name]
