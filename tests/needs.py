"""Packages that some tests need beside topv's own."""

from __future__ import annotations

import importlib
import os

import pytest

__all__ = ["need"]


def need(package: str) -> None:
    """Skip the test where `package` cannot be imported, or fail it if `$TOPV_NEEDED` names the package: in an
    environment that was made to have it, a skip would hide that nothing was tested."""
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        if package in os.environ.get("TOPV_NEEDED", "").split():
            pytest.fail(f"{package} is needed here and cannot be imported: {error}")
        pytest.skip(f"needs {package}: {error}")
