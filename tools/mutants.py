"""Plant small faults in the core, one at a time, and list those that no test of their room notices.

    make mutants                                  200 faults, seed 0; goes on where it was stopped
    python -m tools.mutants --rooms ranking --sample 40 --seed 1 --tests-python .venv/bin/python

cosmic-ray makes the faults: other operators, numbers, comparisons, conditions, loops that do not begin. Places are
drawn, then one fault at each, so that a place with many possible faults counts once. Annotations are left out, since
nothing evaluates them. Faults are planted in a copy of the tree, never in the tree itself.
"""

from __future__ import annotations

import argparse
import ast
import csv
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[1]
_RUNTIME = (
    "exactness generate cache stages layer_zero evidence errors hard_cases early_layers report attach upstream "
    "compaction targets budgets stage_budgets flash phases"
)
ROOMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "budget": ("src/topv/budget.py", ("tests/test_budget.py", "tests/runtime/test_budgets.py")),
    "selection": ("src/topv/selection.py", ("tests/test_selection.py", "tests/test_ranking.py")),
    "ranking": ("src/topv/ranking.py", ("tests/test_ranking.py", "tests/runtime/test_evidence.py")),
    "transport": ("src/topv/transport", ("tests/transport",)),
    "methods": ("src/topv/methods", ("tests/methods",)),
    "runtime": (
        "src/topv/runtime",
        (
            *(f"tests/runtime/test_{name}.py" for name in _RUNTIME.split()),
            "tests/ecosystem/test_compiled_prefill.py",
            "tests/ecosystem/test_compile.py",
        ),
    ),
}
"""By room, where faults are planted, and the tests that should notice."""

_FIELDS = ("room", "file", "line", "column", "operator", "occurrence", "outcome", "seconds", "source")


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        room: the room that it is in.
        file: the file, from the root.
        line: where it is.
        column: where in the line.
        operator: cosmic-ray's name of the kind of fault.
        occurrence: which of the places in the file where that kind fits.
    """

    room: str
    file: str
    line: int
    column: int
    operator: str
    occurrence: int


def main() -> int:
    """Plant, run, list survivors; 1 when fewer than the wanted share was noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", choices=sorted(ROOMS), default=sorted(ROOMS))
    parser.add_argument("--sample", type=int, default=200, help="faults to plant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=900, help="seconds after which a fault counts as noticed")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="plant no more after so long")
    parser.add_argument("--want", type=float, default=0.9, help="share that must be noticed")
    parser.add_argument("--tests-python", default=sys.executable, help="the interpreter that runs the tests")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants" / "results.csv")
    options = parser.parse_args()
    mutants = sample(options.rooms, options.sample, options.seed)
    done = read(options.out)
    wanted = [mutant for mutant in mutants if key(mutant) not in done]
    print(f"{len(mutants)} faults, {len(mutants) - len(wanted)} of them planted before", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    plant_all(wanted, options)
    return report(mutants, read(options.out), options.want)


def sample(rooms: Iterable[str], count: int, seed: int) -> list[Mutant]:
    """`count` faults, at places drawn evenly from all of the rooms."""
    places: dict[tuple[str, str, int, int], list[Mutant]] = {}
    for room in rooms:
        for file in sorted(files(ROOT / ROOMS[room][0])):
            for mutant in possible(room, file):
                places.setdefault((room, mutant.file, mutant.line, mutant.column), []).append(mutant)
    draw = random.Random(seed)
    chosen = draw.sample(sorted(places), min(count, len(places)))
    return [draw.choice(places[place]) for place in chosen]


def files(where: Path) -> Iterator[Path]:
    """The modules of a room that are more than a list of names."""
    for file in [where] if where.is_file() else where.glob("*.py"):
        if file.name != "__init__.py":
            yield file


def possible(room: str, file: Path) -> list[Mutant]:
    """Every fault that cosmic-ray can plant in a file, but for those in annotations."""
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB, use_db

    spans = list(annotation_spans(ast.parse(file.read_text())))
    found = []
    with use_db(":memory:", WorkDB.Mode.create) as db:
        init([file], db, {})
        for item in db.work_items:
            for spec in item.mutations:
                if not any(start <= spec.start_pos < end for start, end in spans):
                    line, column = spec.start_pos
                    name = file.relative_to(ROOT).as_posix()
                    found.append(Mutant(room, name, line, column, spec.operator_name, spec.occurrence))
    return found


def annotation_spans(tree: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end."""
    for node in ast.walk(tree):
        for value in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(value, ast.expr):
                yield (value.lineno, value.col_offset), (value.end_lineno or 0, value.end_col_offset or 0)


def plant_all(mutants: list[Mutant], options: argparse.Namespace) -> None:
    """Plant every fault in a copy of the tree, as many at a time as there are workers, and write what came of it."""
    trees: Queue[Path] = Queue()
    for number in range(options.workers):
        trees.put(copy_tree(options.out.parent / f"tree-{number}"))
    writing, ends = threading.Lock(), time.monotonic() + 60 * options.minutes

    def run(mutant: Mutant) -> None:
        if time.monotonic() > ends:
            return
        tree = trees.get()
        try:
            started = time.monotonic()
            outcome = plant(mutant, tree, options)
            source = (ROOT / mutant.file).read_text().splitlines()[mutant.line - 1].strip()
            with writing:
                append(options.out, (*astuple(mutant), outcome, f"{time.monotonic() - started:.0f}", source))
                print(f"{outcome:9} {mutant.file}:{mutant.line} {mutant.operator}: {source}", flush=True)
        finally:
            trees.put(tree)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(run, mutants))


def copy_tree(where: Path) -> Path:
    """A fresh copy of the files that git knows."""
    shutil.rmtree(where, ignore_errors=True)
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT).decode().split("\0")
    for name in filter(None, names):
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, where / name)
    return where


def plant(mutant: Mutant, tree: Path, options: argparse.Namespace) -> str:
    """Run the room's tests with one fault in `tree`: "noticed", "survived" or "timeout"."""
    from cosmic_ray.mutating import apply_mutation
    from cosmic_ray.plugins import get_operator

    file = tree / mutant.file
    before = file.read_text()
    apply_mutation(file, get_operator(mutant.operator)(), mutant.occurrence)
    if file.read_text() == before:
        raise RuntimeError(f"{mutant} changes nothing.")
    environment = {**os.environ, "PYTHONPATH": "src", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [options.tests_python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *ROOMS[mutant.room][1]]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
            timeout=options.timeout,
        )  # fmt: skip
        return "survived" if done.returncode == 0 else "noticed"
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        file.write_text(before)


def key(mutant: Mutant) -> tuple[str, str, str]:
    """What tells a fault from others in a file of results."""
    return mutant.file, mutant.operator, str(mutant.occurrence)


def read(file: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """The results so far, by `key`."""
    if not file.exists():
        return {}
    with file.open(newline="") as rows:
        return {(row["file"], row["operator"], row["occurrence"]): row for row in csv.DictReader(rows)}


def append(file: Path, row: tuple[object, ...]) -> None:
    """Add one result."""
    is_new = not file.exists()
    with file.open("a", newline="") as rows:
        writer = csv.writer(rows)
        if is_new:
            writer.writerow(_FIELDS)
        writer.writerow(row)


def report(mutants: list[Mutant], results: dict[tuple[str, str, str], dict[str, str]], want: float) -> int:
    """Print survivors and the share that was noticed, room by room."""
    known = [results[key(mutant)] for mutant in mutants if key(mutant) in results]
    survivors = [row for row in known if row["outcome"] == "survived"]
    for row in survivors:
        print(f"SURVIVED {row['file']}:{row['line']}:{row['column']} {row['operator']}: {row['source']}")
    for room in sorted({row["room"] for row in known}):
        own = [row for row in known if row["room"] == room]
        print(f"{room}: {sum(row['outcome'] != 'survived' for row in own)} of {len(own)} noticed")
    share = 1 - len(survivors) / len(known) if known else 0.0
    print(f"in all: {len(known) - len(survivors)} of {len(known)} noticed, {share:.0%} (of {len(mutants)} drawn)")
    return int(share < want)


if __name__ == "__main__":
    sys.exit(main())
