"""Layouts that travel with encoded pictures: `generate` encodes first, and gives the model the features alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedError
from ..layout import Picture

__all__ = ["Recalled", "note", "recall", "refuse_lost"]

_PICTURE, _NOTE = "_topv_picture", "_topv_encoded"


@dataclass(frozen=True)
class Recalled:
    """What encoded pictures remember.

    Attributes:
        arguments: what they were encoded from, by name; of pixels the shapes alone.
        pictures: by kind, the layout of each, where all of a kind carry one.
        copies: how many rows of the batch were made of each sample (beams, several sequences).
        lost: whether features came that were not encoded whole in this call of `generate`: cut by chunks, or brought
            along.
    """

    arguments: Mapping[str, Any]
    pictures: Mapping[str, Sequence[Picture]]
    copies: int
    lost: bool


class _PromptNeeded(KeyError):
    """A layout is read off the prompt, which is at hand later."""


class _WithoutPrompt(dict[str, Any]):
    """The arguments of an encoder, which is not given the prompt."""

    def __missing__(self, name: str) -> Any:
        raise _PromptNeeded(name) if name == "input_ids" else KeyError(name)


def note(
    lay_out: Callable[[Mapping[str, Any]], Sequence[Picture] | None], inputs: Mapping[str, Any], output: Any
) -> None:
    """Note on encoded pictures how they are laid out.

    Args:
        lay_out: a family's `images` or `videos`.
        inputs: the arguments that they were encoded from, by name.
        output: what `get_image_features` or `get_video_features` returned.
    """
    shapes = {n: v.to("meta") if n.startswith("pixel") and hasattr(v, "to") else v for n, v in inputs.items()}
    try:
        pictures = lay_out(_WithoutPrompt(inputs))
    except _PromptNeeded:
        pictures = None
    features = _features(output)
    if hasattr(output, "__dict__"):
        vars(output)[_NOTE] = (shapes, len(features))
    if pictures is not None and isinstance(features, (list, tuple)) and len(features) == len(pictures):
        for feature, picture in zip(features, pictures, strict=True):
            setattr(feature, _PICTURE, picture)


def recall(inputs: Mapping[str, Any]) -> Recalled:
    """What the encoded pictures among a call's arguments remember."""
    arguments: dict[str, Any] = {}
    pictures: dict[str, Sequence[Picture]] = {}
    copies, lost = 1, False
    for kind, output in (inputs.get("mm_encoder_outputs") or {}).items():
        if output is None:
            continue
        features = _features(output)
        marks = [getattr(feature, _PICTURE, None) for feature in features]
        known = [mark for mark in marks if mark is not None]
        if known and len(known) == len(marks):
            pictures[kind] = known
        noted = getattr(output, _NOTE, None)
        if noted is None:
            lost = True
            continue
        arguments |= noted[0]
        if noted[1]:
            copies = max(copies, len(features) // noted[1])
    return Recalled(arguments, pictures, copies, lost)


def refuse_lost(model_name: str) -> UnsupportedError:
    """The error for pictures whose layout is not known because their features were cut or brought along."""
    return UnsupportedError(
        f"{model_name} was given encoded images whose layout topv does not know: `prefill_chunk_size` cut "
        "them into chunks, or they were encoded before the method was attached. Generate with prefill_chunk_size=None, "
        "and pass the pixel values that the processor returned."
    )


def _features(output: Any) -> Sequence[Any]:
    """The features of each picture, where a model hands them out one by one or stacked."""
    features = getattr(output, "pooler_output", output)
    return features if hasattr(features, "__len__") and not isinstance(features, dict) else ()
