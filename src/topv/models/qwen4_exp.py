"""Qwen4 (experimental): some layers read the ids of tokens, each together with those before it."""

from __future__ import annotations

from collections.abc import Mapping

from .patch_grids import PatchGrids

__all__ = ["Qwen4Exp"]


class Qwen4Exp(PatchGrids):
    """`Qwen4ExpForConditionalGeneration`."""

    @property
    def fillers(self) -> Mapping[str, int]:
        end = self.text_config.eos_token_id
        # What the model itself puts at padding.
        return {} if end is None else {"ple_input_ids": end[0] if isinstance(end, list) else end}
