"""What the trainer needs to know of a model class; one subclass for each that it can train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .presets import Preset

__all__ = ["Architecture", "Frame", "text_config"]


class Frame(NamedTuple):
    """Ids of the tokens in front of an image's visual tokens and of those between them and the question."""

    before: tuple[int, ...]
    after: tuple[int, ...]


class Architecture(ABC):
    """How to build a model and its processor, run its tower, and begin from trained weights.

    Attributes:
        model_type: as in ``config.json``.
        before, after: the tokens of ``Frame``.
    """

    model_type: ClassVar[str]
    before: ClassVar[tuple[str, ...]]
    after: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def processor(self, preset: Preset, tokenizer: Any) -> Any:
        """The processor of a preset, around a tokenizer of `build_tokenizer`."""

    @abstractmethod
    def model(self, preset: Preset, tokenizer: Any) -> Any:
        """A randomly initialised model."""

    @abstractmethod
    def see(self, model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Run tower and projector.

        Args:
            model: what ``model`` built.
            pixels: uint8 (B, ..., side, side, 3), as ``View.pixels`` gives them.

        Returns:
            tower features (B, patches, vision width) and visual tokens (B, tokens, text width).
        """

    def begin(self, model: Any, tokenizer: Any, start: Path) -> None:
        """Give an untrained model the weights of the trained one in a folder.

        Raises:
            ValueError: the folder holds a model of another shape.
        """
        from transformers import AutoModelForImageTextToText

        trained = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32, local_files_only=True)
        held, wanted = trained.state_dict(), model.state_dict()
        other = [name for name in wanted if name not in held or held[name].shape != wanted[name].shape]
        if other or len(held) != len(wanted):
            raise ValueError(
                f"{start} holds a {trained.config.model_type} model of another shape ({other[:3]} differ); start from"
                " a model that this preset trained."
            )
        model.load_state_dict(held)

    def frame(self, tokenizer: Any) -> Frame:
        """The ids of ``before`` and ``after``."""
        before, after = (tuple(tokenizer.convert_tokens_to_ids(list(text))) for text in (self.before, self.after))
        return Frame(before, after)


def text_config(preset: Preset, tokenizer: Any) -> Any:
    """The decoder of a preset."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=preset.text_width,
        intermediate_size=preset.text_mlp,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=preset.text_heads,
        num_key_value_heads=preset.text_kv_heads,
        head_dim=preset.text_width // preset.text_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
