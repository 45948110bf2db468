"""The code in README and CONTRIBUTING runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import topv
from tiny_models import TOKENS, prompt, shared_llava

ROOT = Path(__file__).parent.parent


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def test_readme_runs(capsys: Any) -> None:
    (block,) = blocks("README.md")
    exec(compile(block, "README.md", "exec"), {})
    assert "visual tokens" in capsys.readouterr().out


def test_contributing_method_works() -> None:
    (block,) = blocks("CONTRIBUTING.md")
    names: dict[str, Any] = {"__name__": "contributed"}
    import sys
    import types

    module = types.ModuleType("contributed")
    sys.modules["contributed"] = module
    try:
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
        with topv.prune(shared_llava(), names["Norm"](keep=0.25)) as pruning, torch.no_grad():
            shared_llava()(**prompt([[3, "image", 4]]))
    finally:
        del sys.modules["contributed"]
    assert pruning.report().kept_tokens == TOKENS // 4


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
