"""The machine and the versions that a figure was measured with."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Environment", "describe_environment"]

_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
)


@dataclass(frozen=True)
class Environment:
    """What a figure depends on besides the code.

    Attributes:
        versions: of topv, python, torch, transformers and the libraries beneath, by name.
        system: operating system and architecture.
        cpu: the processor's name.
        cpu_threads: threads that torch computes with.
        cpu_features: vector extensions that matter to speed, as the processor names them.
        gpus: names of the CUDA devices.
        attention: attention backends of transformers that can run here.
    """

    versions: dict[str, str]
    system: str
    cpu: str
    cpu_threads: int
    cpu_features: tuple[str, ...]
    gpus: tuple[str, ...]
    attention: tuple[str, ...]

    def device_name(self, device: torch.device) -> str:
        """`device` in words."""
        if device.type == "cuda":
            return self.gpus[device.index or 0]
        threads = f"{self.cpu_threads} thread{'s' * (self.cpu_threads != 1)}"
        return f"{self.cpu}, {threads}" if device.type == "cpu" else str(device)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain strings, numbers and lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def describe_environment() -> Environment:
    """Look at the machine and the installed libraries."""
    import torch

    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow")
    return Environment(
        versions={
            "topv": _version("topv"),
            "python": platform.python_version(),
            **{package: _version(package) for package in packages},
        },
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_name(),
        cpu_threads=torch.get_num_threads(),
        cpu_features=_cpu_features(),
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        attention=_attention_backends(),
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _cpu_name() -> str:
    name = _cpuinfo().get("model name") or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _cpu_features() -> tuple[str, ...]:
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("features") or "").split())
    return tuple(feature for feature in _FEATURES if feature in flags)


def _attention_backends() -> tuple[str, ...]:
    from transformers import utils

    backends = ["eager", "sdpa"]
    for name, check in (
        ("flex_attention", "is_torch_flex_attn_available"),
        ("flash_attention_2", "is_flash_attn_2_available"),
        ("flash_attention_3", "is_flash_attn_3_available"),
    ):
        available = getattr(utils, check, None)
        if available is not None and available():
            backends.append(name)
    return tuple(backends)
