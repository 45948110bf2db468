"""Let a torchvision that was built for CUDA be imported beside a torch that was not.

Its compiled operators cannot be loaded there, and importing it fails since it registers `nms` without them. The
operators' names are declared instead; image transforms work, and an operator that is called still fails. Nothing is
changed where torchvision imports as it is.

Run it with the interpreter of an environment that a make target has created, never with another.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

DECLARED = """

if not _has_ops():
    import torch as _torch

    _declared = _torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _declared.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def imports() -> bool:
    """Whether torchvision can be imported in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode == 0


def main() -> None:
    """Repair torchvision, if it needs that.

    Raises:
        RuntimeError: when it is not installed, or cannot be imported even so.
    """
    if imports():
        return
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        raise RuntimeError("torchvision is not installed in this environment.")
    extension = Path(package.origin).with_name("extension.py")
    source = extension.read_text()
    if DECLARED not in source:
        extension.write_text(source + DECLARED)
    if not imports():
        extension.write_text(source)
        raise RuntimeError("torchvision cannot be imported, for another reason than its missing operators.")


if __name__ == "__main__":
    main()
