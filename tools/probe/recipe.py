"""How to build a tiny random model of one architecture, and prompts for it as its processor would write them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

__all__ = ["PICTURES", "FixedGridRecipe", "Pictures", "Recipe", "takes"]

PICTURES = ("image", "wide", "video")
"""What a sample can hold beside text: an image, an image of another shape, a video."""

VOCABULARY = 192
FIRST_TEXT_TOKEN = 32
"""Ids below are kept for special tokens, from here up they are text."""


def takes(model: Any, name: str) -> bool:
    """Whether a model's `forward` has an argument of this name, which may differ between releases of transformers."""
    return name in inspect.signature(model.forward).parameters


@dataclass
class Pictures:
    """What a batch's pictures add to a call of the model.

    Attributes:
        inputs: the keyword arguments that carry them, such as `pixel_values`.
        tokens: for each picture, in order, the ids that stand for it in the prompt, separators included.
    """

    inputs: dict[str, Any]
    tokens: list[list[int]] = field(default_factory=list)


class Recipe:
    """A tiny random model of one architecture, and inputs for it.

    Attributes:
        model_type: the key in transformers' image-text-to-text mapping.
        several_images: whether one prompt can hold more than one image.
        wide: whether an image of another shape takes another grid of tokens.
        video: whether a prompt can hold a video.
        continuation: for arguments that hold a number per token, the number of generated tokens where it is not 0.
        needs: a package beyond topv's own that building the model imports, or None.
    """

    model_type: str
    several_images: bool = True
    wide: bool = False
    video: bool = False
    continuation: ClassVar[dict[str, int]] = {}
    needs: str | None = None

    def config(self) -> Any:
        """The configuration of a model with some 5 decoder layers that builds in well under a second."""
        raise NotImplementedError

    def build(self) -> Any:
        """The random model, float32, on the CPU and in evaluation mode. Seed torch before calling."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config := self.config())](config)
        self.randomise(model)
        return model.float().eval()

    def randomise(self, model: Any) -> None:
        """Draw every matrix anew: larger than transformers does, so that layers and positions differ by more than
        rounding, and smaller than where a recurrent layer would magnify rounding itself."""
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    fan_in = parameter[0].numel()
                    parameter.normal_(0, min(0.25, 0.4 * fan_in**-0.5))

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        """Random pictures of the given kinds (of `PICTURES`), in the order in which the batch holds them."""
        raise NotImplementedError

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Further arguments that the processor would derive from the finished prompt, such as token types."""
        return {}

    def continued(self, model: Any, length: int) -> dict[str, Any]:
        """Further arguments of one call with a prompt of `length` tokens and generated ones behind it, where the model
        treats the two differently."""
        return {}

    def prompt(self, model: Any, samples: Sequence[Sequence[int | str]], *, seed: int = 0) -> dict[str, Any]:
        """Left-padded inputs for samples made of numbers of text tokens and pictures: `[[3, "image", 2], [4]]`."""
        generator = torch.Generator().manual_seed(seed)
        kinds = [part for sample in samples for part in sample if isinstance(part, str)]
        unknown = sorted(set(kinds) - set(PICTURES))
        if unknown:
            raise ValueError(f"Unknown pictures {unknown}; expected some of {', '.join(PICTURES)}.")
        pictures = self.pictures(model, kinds, generator) if kinds else Pictures({})
        tokens = iter(pictures.tokens)
        rows: list[list[int]] = []
        for sample in samples:
            row: list[int] = []
            for part in sample:
                if isinstance(part, str):
                    row += next(tokens)
                else:
                    row += torch.randint(FIRST_TEXT_TOKEN, VOCABULARY, (part,), generator=generator).tolist()
            rows.append(row)
        width = max(map(len, rows))
        input_ids = torch.zeros(len(rows), width, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, width - len(row) :] = torch.tensor(row)
            attention_mask[index, width - len(row) :] = 1
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **pictures.inputs}
        return inputs | self.extra(model, inputs)


class FixedGridRecipe(Recipe):
    """For models in which every image becomes the same number of placeholder tokens.

    Attributes:
        side: height and width of `pixel_values`.
        before, after: separator ids around each image's placeholders.
    """

    side: int = 24
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def image_token(self, model: Any) -> int:
        """The id of an image placeholder."""
        return int(model.config.image_token_id)

    def placeholders(self, model: Any, pixels: dict[str, Any], images: int) -> int:
        """Placeholders per image: as many as the model makes features of it."""
        with torch.no_grad():
            features = model.get_image_features(**pixels)
        features = getattr(features, "pooler_output", features)
        parts = features if isinstance(features, (list, tuple)) else [features]
        return sum(part.numel() // part.shape[-1] for part in parts) // images

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        pixels = {"pixel_values": torch.randn(len(kinds), 3, self.side, self.side, generator=generator)}
        own = [self.image_token(model)] * self.placeholders(model, pixels, len(kinds))
        return Pictures(pixels, [[*self.before, *own, *self.after] for _ in kinds])
