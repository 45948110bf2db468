"""A copy of the library to write into: links to all of its files, in folders of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import topv

_SOURCE = Path(topv.__file__).parent
_WRITABLE = ("methods", "models")


class PackageCopy(NamedTuple):
    """A copy of the library that a process of its own can import.

    Attributes:
        root: the copy of the repository, with the package in `src/topv`.
    """

    root: Path

    @classmethod
    def at(cls, root: Path) -> PackageCopy:
        """Make one at `root`, with real folders where files are added."""
        package = root / "src" / "topv"
        package.mkdir(parents=True)
        for path in _SOURCE.iterdir():
            if path.name in _WRITABLE:
                (package / path.name).mkdir()
                for file in path.glob("*.py"):
                    (package / path.name / file.name).symlink_to(file)
            elif path.name != "__pycache__":
                (package / path.name).symlink_to(path)
        # The tools beside the package.
        (root / "tools").symlink_to(Path(__file__).parents[1] / "tools")
        return cls(root)

    def write(self, file: str, text: str) -> Path:
        """Write a file of the repository into the copy, in the place of what is there."""
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        return path

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python where `topv` is the copy."""
        environment = {**os.environ, "PYTHONPATH": str(self.root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.root, env=environment, capture_output=True, text=True
        )

    def run(self, *arguments: str) -> str:
        """What `python` prints.

        Raises:
            AssertionError: when it fails.
        """
        done = self.python(*arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout
