"""Where the tokens of a call's images and videos sit in its prompts, told by configuration and arguments alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import UnsupportedError
from ..layout import Picture, VisualLayout
from .encoded import Recalled, note, recall, refuse_lost
from .runs import run_lengths

__all__ = ["Pictures"]


class Pictures:
    """The generic rule for the pictures of a vision-language model. It needs no model, only its configuration.

    Args:
        config: the configuration of the whole model.
        model_name: what errors call the model; by default the name of the configuration's class.

    Attributes:
        config: as given.
        model_name: as given, or its default.
    """

    def __init__(self, config: Any, model_name: str | None = None) -> None:
        self.config = config
        self.model_name = model_name or type(config).__name__

    @property
    def image_ids(self) -> frozenset[int]:
        """Token ids of which every occurrence stands for one visual token of an image."""
        return _ids(self.config, "image_token_id", "image_token_index")

    @property
    def video_ids(self) -> frozenset[int]:
        """Token ids of which every occurrence stands for one visual token of a video."""
        return _ids(self.config, "video_token_id", "video_token_index")

    def placeholders(self, input_ids: torch.Tensor, inputs: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Which of `input_ids` (B, T) stand for a visual token: BoolTensor (B, T).

        Args:
            input_ids: LongTensor (B, T).
            inputs: the call's arguments by name, where ids alone do not tell.
        """
        ids = sorted(self.image_ids | self.video_ids)
        return torch.isin(input_ids, torch.tensor(ids, device=input_ids.device))

    def has_images(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the call's keyword arguments bring images or videos to encode, or already encoded."""
        encoded = inputs.get("mm_encoder_outputs") or {}
        # Older releases of transformers give Fuyu's pixels the second of these names.
        names = ("pixel_values", "image_patches")
        return any(value is not None for name, value in inputs.items() if name.startswith(names)) or any(
            encoded.get(kind) is not None for kind in ("image", "video")
        )

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        """The images of a call, in the order in which its arguments hold them, or None where the rule that lays them
        out is not known.

        Args:
            inputs: the call's arguments by name, on any device.

        Raises:
            LayoutError: when the arguments do not say enough.
        """
        return None

    def videos(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        """The videos of a call, as `images`."""
        return None

    def mark(self, kind: str, inputs: Mapping[str, Any], output: Any) -> None:
        """Note on encoded pictures how they are laid out, for a later call that is given the features alone.

        Args:
            kind: "image" or "video".
            inputs: the arguments that they were encoded from, by name.
            output: what `get_image_features` or `get_video_features` returned.
        """
        note(self.images if kind == "image" else self.videos, inputs, output)

    def layout(self, placeholders: torch.Tensor, inputs: Mapping[str, Any]) -> VisualLayout:
        """Deal the placeholder positions (B, T), on the CPU, out to the images and videos of this call.

        Where no rule is known, each unbroken run of placeholders is a grid of its own in which no token has a place.

        Raises:
            LayoutError: when they do not fit.
        """
        recalled = recall(inputs)
        given = {name: value for name, value in inputs.items() if value is not None}
        one_of_each = slice(None, None, recalled.copies)
        whole = {**recalled.arguments, **given, "input_ids": inputs["input_ids"].cpu()[one_of_each]}
        return self._layout(placeholders[one_of_each], whole, recalled).repeated(recalled.copies)

    def kinds(self, placeholders: torch.Tensor, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Which placeholders (B, T) stand for tokens of an image, and which for those of a video."""
        is_video = placeholders & torch.isin(input_ids, torch.tensor(sorted(self.video_ids - self.image_ids)))
        return {"image": placeholders & ~is_video, "video": is_video}

    def _layout(self, placeholders: torch.Tensor, inputs: Mapping[str, Any], recalled: Recalled) -> VisualLayout:
        kinds = self.kinds(placeholders, inputs["input_ids"])
        is_video = kinds["video"]
        rules = {"image": self.images, "video": self.videos}
        queues: dict[str, Sequence[Picture] | None] = {}
        for kind, rule in rules.items():
            # Copies of a sample carry the marks of its pictures as often.
            queues[kind] = recalled.pictures.get(kind) if recalled.copies == 1 else None
            if queues[kind] is None:
                queues[kind] = rule(inputs)
            if queues[kind] is None and bool(kinds[kind].any()):
                if recalled.lost:
                    raise refuse_lost(self.model_name)
                queues[kind] = [Picture.placeless(length) for length in run_lengths(kinds[kind])]
        return VisualLayout.from_pictures(placeholders, _in_prompt_order(placeholders, is_video, queues))

    def fixed_grid(self) -> tuple[int, int]:
        """The (h, w) grid that every image fills, for models that scale all images to one size.

        Raises:
            UnsupportedError: when grids differ from image to image.
        """
        raise UnsupportedError(f"{self.model_name} has no one grid size: it depends on the image.")


def _ids(config: Any, *names: str) -> frozenset[int]:
    return frozenset(value for name in names if isinstance(value := getattr(config, name, None), int))


def _in_prompt_order(
    placeholders: torch.Tensor, is_video: torch.Tensor, queues: Mapping[str, Sequence[Picture] | None]
) -> list[Picture]:
    """Images and videos merged into the order in which the prompts hold their placeholders."""
    waiting = {kind: iter(pictures or ()) for kind, pictures in queues.items()}
    ordered: list[Picture] = []
    for marks, video in zip(placeholders, is_video, strict=True):
        kinds = video[marks.nonzero().squeeze(1)].tolist()
        at = 0
        while at < len(kinds):
            picture = next(waiting["video" if kinds[at] else "image"], None)
            if picture is None:
                break
            ordered.append(picture)
            at += picture.tokens
    for left in waiting.values():
        ordered += left
    return ordered
