"""The wheel and the sdist, as `make test-wheel` builds and installs them: contents, commands, Pythons, extras."""

from __future__ import annotations

import email
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

if "TOPV_DIST" not in os.environ:
    pytest.skip("`make test-wheel` builds what is tested here", allow_module_level=True)

ROOT = Path(__file__).parents[2]
DIST = (ROOT / os.environ["TOPV_DIST"]).resolve()
(WHEEL,), (SDIST,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
MEBIBYTE = 2**20
BESIDE = ("training", "tools", "probe", "benchmarks")
"""Folders of the repository that are not installed."""
SUPPORTED = ("3.10", "3.11", "3.12", "3.13")
TORCH = re.search(r"^torch==.+$", (ROOT / "constraints.txt").read_text(), re.M)


def metadata() -> email.message.Message:
    with zipfile.ZipFile(WHEEL) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def run(*words: object, cwd: Path, timeout: float = 300) -> str:
    """Standard output of a command that must succeed, away from the repository and its settings."""
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=settings, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{words}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def interpreters() -> dict[str, str]:
    """The supported Pythons of this machine but the one that runs this, by version."""
    found: dict[str, str] = {}
    for version in SUPPORTED:
        places = [
            shutil.which(f"python{version}"),
            *sorted(glob.glob(f"{Path.home()}/.pyenv/versions/{version}.*/bin/python")),
        ]
        working = [
            path for path in places if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0
        ]
        if working and version != f"{sys.version_info.major}.{sys.version_info.minor}":
            found[version] = working[-1]
    return found


OTHERS = interpreters()


def test_wheel_is_small_enough() -> None:
    assert WHEEL.stat().st_size <= 70 * MEBIBYTE
    assert SDIST.stat().st_size <= 70 * MEBIBYTE


def test_wheel_holds_the_package_and_nothing_else() -> None:
    with zipfile.ZipFile(WHEEL) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"topv"}
    kept = (path for path in (ROOT / "src" / "topv").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    source = {f"topv/{path.relative_to(ROOT / 'src' / 'topv').as_posix()}" for path in kept}
    # READMEs of the bundled weights are for readers of the repository.
    missing = {name for name in source - names if not name.endswith(("README.md", "curves.png"))}
    assert not missing, "package-data in pyproject.toml leaves these out"
    assert "topv/py.typed" in names


def test_neither_trainer_nor_probes_are_shipped() -> None:
    """They lie beside the package; of the bundled models only what loads them is code."""
    with zipfile.ZipFile(WHEEL) as archive:
        shipped = archive.namelist()
    with tarfile.open(SDIST) as archive:
        folders = {name.partition("/")[2].split("/")[0] for name in archive.getnames()}
    assert not {part for name in shipped for part in name.split("/")[:-1]} & set(BESIDE)
    assert not folders & set(BESIDE)
    assert [name for name in shipped if name.startswith("topv/mini/") and name.endswith(".py")] == [
        "topv/mini/__init__.py"
    ]
    assert {"topv/models/matrix.json", "topv/verify/reference.py"} <= set(shipped)


def test_sdist_holds_what_the_wheel_is_made_of() -> None:
    with tarfile.open(SDIST) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/topv/py.typed"} <= names


def test_metadata() -> None:
    about = metadata()
    assert about["Name"] == "topv"
    assert set(about["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    assert about["License-Expression"] == "Apache-2.0"
    torch_free = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(torch_free) < 12, "a hard dependency for a side feature"


def test_installed_package_runs(tmp_path: Path) -> None:
    where = run(sys.executable, "-c", "import topv; print(topv.__file__)", cwd=tmp_path)
    assert str(ROOT / "src") not in where
    program = Path(sys.executable).with_name("topv")
    assert "compare" in run(program, "--help", cwd=tmp_path)
    assert "qwen2_5_vl" in run(program, "models", cwd=tmp_path)
    report = tmp_path / "report.html"
    out = run(program, "compare", "--samples", 2, "--methods", "none,topv", "--report", report, cwd=tmp_path)
    assert "144" in out
    assert "72" in out
    assert report.stat().st_size > 10_000
    row = json.loads(run(program, "compare", "--samples", 1, "--no-timing", "--json", cwd=tmp_path))
    assert row


def test_installed_extras_are_named_in_errors(tmp_path: Path) -> None:
    """What an extra brings is not needed without it, and its command says which extra that is."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("topv")), "ui"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "topv[ui]" in done.stderr


@pytest.mark.parametrize("version", sorted(OTHERS))
def test_other_pythons_compile_and_resolve(version: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(WHEEL) as archive:
        archive.extractall(tmp_path / "unpacked")
    run(OTHERS[version], "-m", "compileall", "-q", "unpacked", cwd=tmp_path)
    assert list((tmp_path / "unpacked").rglob("*.pyc"))
    assert "torch" in resolve(str(WHEEL), tmp_path, OTHERS[version])


@pytest.mark.parametrize("extra", sorted(metadata().get_all("Provides-Extra")))
def test_extras_resolve(extra: str, tmp_path: Path) -> None:
    assert "topv" in resolve(f"{WHEEL}[{extra}]", tmp_path, sys.executable)


def resolve(requirement: str, folder: Path, python: str) -> set[str]:
    """What pip would install, in lower case, with torch as the Makefile pins it."""
    assert TORCH is not None
    constraint, report = folder / "constraints.txt", folder / "report.json"
    constraint.write_text(TORCH[0] + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--dry-run", "--ignore-installed")
    run(*pip, "--constraint", constraint, "--report", report, requirement, cwd=folder, timeout=900)
    return {item["metadata"]["name"].lower() for item in json.loads(report.read_text())["install"]}
