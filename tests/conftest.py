"""Settings that every test shares."""

from __future__ import annotations

import os

import torch

from repairs import repair_models

# Parallel workers share the cores.
if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)

repair_models()
