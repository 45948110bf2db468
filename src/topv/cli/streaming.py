"""Printing an answer while it is generated."""

from __future__ import annotations

from typing import Any, TextIO

from transformers import TextStreamer

from ..report.text import printable

__all__ = ["SafeStreamer"]


class SafeStreamer(TextStreamer):
    """Streams the answer, without the prompt, to a text file, with control characters made harmless.

    Args:
        tokenizer: the model's tokenizer.
        file: where to write.
    """

    def __init__(self, tokenizer: Any, file: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._file = file
        self._started = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write the next piece, and a newline after the last."""
        if not self._started:
            text = text.lstrip()
            self._started = bool(text)
        self._file.write(printable(text) + ("\n" if stream_end else ""))
        self._file.flush()
