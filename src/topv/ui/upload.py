"""Gradio's image box, without its own decoding and downloading."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..errors import InputError

__all__ = ["upload_box"]


def upload_box(**options: Any) -> gr.Image:
    """An image box that gives the path of the uploaded file as it is, for `Limits.read_upload` to judge.

    Gradio's own would open it with every decoder there is, and fetch an address where a path is expected. (A subclass
    would do, but Gradio writes a stub file beside the source of each subclass.)

    Args:
        **options: those of `gr.Image`.
    """
    box = gr.Image(**options)
    move = box.async_move_resource_to_block_cache

    def preprocess(payload: Any) -> str | None:
        # That the path is one of an upload was checked before.
        return None if payload is None else payload.path

    async def move_file(place: Any) -> str | None:
        if str(place).lower().startswith(("http:", "https:")):
            raise InputError("pictures are uploaded, not fetched from an address.")
        moved: str | None = await move(place)
        return moved

    box.preprocess = preprocess
    box.async_move_resource_to_block_cache = move_file
    return box
