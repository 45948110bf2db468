"""Print, as constraints, the oldest release of each dependency that pyproject.toml allows.

Run it with `python tests/oldest.py > constraints.txt`; it needs Python 3.11, or the package tomli.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def oldest(requirements: list[str]) -> list[str]:
    """`name==version` for each of `requirements`, by its lower bound.

    >>> oldest(["torch>=2.6,<2.15", "rich>=13"])
    ['torch==2.6', 'rich==13']

    Raises:
        ValueError: when a requirement has no lower bound.
    """
    found = []
    for requirement in requirements:
        bound = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*>=\s*([0-9.]+)", requirement)
        if bound is None:
            raise ValueError(f"{requirement!r} has no lower bound; expected one such as 'rich>=13'.")
        found.append(f"{bound[1]}=={bound[2]}")
    return found


def main() -> None:
    """Print a line for each dependency."""
    try:
        import tomllib
    except ModuleNotFoundError:
        import tomli as tomllib  # type: ignore[no-redef]
    project: dict[str, Any] = tomllib.loads(PYPROJECT.read_text())["project"]
    print("\n".join(oldest(project["dependencies"])))


if __name__ == "__main__":
    main()
