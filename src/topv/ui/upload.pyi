"""Gradio's image box, without its own decoding and downloading."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

from ..errors import InputError

__all__ = ["UploadedImage"]

class UploadedImage(gr.Image):
    """An image box that gives the path of the uploaded file as it is, for `Limits.read_upload` to judge.

    Gradio's own would open it with every decoder there is, and fetch an address where a path is expected.
    """

    is_template = True

    def preprocess(self, payload: ImageData | None) -> str | None:
        """The path of the upload; that it is one was checked by Gradio."""
        return None if payload is None else payload.path

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        """As Gradio's, for files alone.

        Raises:
            InputError: when it is an address.
        """
        if str(url_or_file_path).lower().startswith(("http:", "https:")):
            raise InputError("pictures are uploaded, not fetched from an address.")
        return await super().async_move_resource_to_block_cache(url_or_file_path)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component
