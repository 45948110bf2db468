"""Run tests in an environment of newest releases, and tell, if some fail, drift of a dependency from a fault of topv.

What fails there is run again with the releases of constraints.txt. What passes with those has drifted. Run it with the
newest environment's interpreter: `python tests/drift.py --pinned .venv/bin/python tests/runtime`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LIST = "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"


def main() -> int:
    """Run the tests, explain failures, and give pytest's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pinned", required=True, help="the interpreter with the releases of constraints.txt")
    parser.add_argument("--constraints", type=Path, default=Path("constraints.txt"))
    parser.add_argument("tests", nargs="+")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        arguments = ["-m", "pytest", "-n", "auto", "-o", f"cache_dir={cache}"]
        status = subprocess.run([sys.executable, *arguments, *options.tests]).returncode
        if status != 1:
            return status
        print("\n--- what failed, again, with the releases of constraints.txt ---", flush=True)
        again = subprocess.run([options.pinned, *arguments, "--last-failed", *options.tests]).returncode
    print(verdict(differing(installed(), options.constraints.read_text()), failed_again=again != 0))
    return status


def installed() -> dict[str, str]:
    """The packages of this environment and their versions, by lower-case name."""
    found: dict[str, str] = json.loads(subprocess.check_output([sys.executable, "-c", LIST], text=True))
    return found


def differing(versions: dict[str, str], constraints: str) -> list[str]:
    """What is installed at another version than the constraints say.

    >>> differing({"rich": "15.1.0", "numpy": "2.4.6"}, "rich==15.0.0\\nnumpy==2.4.6\\n")
    ['rich 15.1.0 (constraints: 15.0.0)']
    """
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", constraints, re.MULTILINE)
    return [
        f"{name} {versions[name.lower()]} (constraints: {pin})"
        for name, pin in pins
        if name.lower() in versions and versions[name.lower()].split("+")[0] != pin
    ]


def verdict(differences: list[str], *, failed_again: bool) -> str:
    """What the failures say, in words."""
    newer = "; ".join(differences) or "nothing that constraints.txt names"
    if failed_again:
        return f"FAULT OF TOPV: what fails with the newest releases fails with constraints.txt too. Differing: {newer}."
    return (
        f"DRIFT: this passes with constraints.txt and fails with newer releases: {newer}. Adapt topv, or cap the range "
        "in pyproject.toml, then move constraints.txt."
    )


if __name__ == "__main__":
    sys.exit(main())
