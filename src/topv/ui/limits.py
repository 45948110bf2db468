"""What strangers may ask of the page, and the checks that hold them to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..ask.method_spec import MethodSpec, parse_methods
from ..budget import validate_keep
from ..errors import InputError
from ..images import open_image
from ..methods.settings import method_class, setting_types

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """The largest of everything that a visitor can send.

    Attributes:
        upload_bytes: size of an uploaded file.
        pixels: width * height of an image.
        prompt_characters: length of the question.
        methods: methods side by side.
        new_tokens: length of an answer, in tokens.
        queue: questions that wait.
    """

    upload_bytes: int = 20 * 2**20
    pixels: int = 32_000_000
    prompt_characters: int = 2_000
    methods: int = 4
    new_tokens: int = 256
    queue: int = 16

    def read_upload(self, path: str | Path | None) -> Image.Image:
        """The uploaded image.

        Raises:
            InputError: when there is none, or it is too large, damaged or no image. The message names no path.
        """
        if path is None:
            raise InputError("there is no image. Upload one, or pick a built-in picture.")
        try:
            # One byte more than is allowed tells whether there is more.
            with Path(path).open("rb") as file:
                content = file.read(self.upload_bytes + 1)
        except OSError as error:
            raise InputError("the uploaded image is no longer there. Upload it again.") from error
        if len(content) > self.upload_bytes:
            raise InputError(f"the image is larger than {self.upload_bytes / 2**20:g} MiB. Upload a smaller one.")
        return open_image(content, max_pixels=self.pixels)

    def read_prompt(self, prompt: object) -> str:
        """The question.

        Raises:
            InputError: when it is none, empty, or too long.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError("there is no question. Write one.")
        if len(prompt) > self.prompt_characters:
            raise InputError(
                f"the question has {len(prompt):,} characters, and at most {self.prompt_characters:,} are taken."
            )
        return prompt

    def read_methods(self, methods: object, keep: object, recovery: object = 0.0) -> list[MethodSpec]:
        """The methods by their names, with the keep ratio, and the share that is recovered under those that can.

        Raises:
            InputError: when there are none or too many, or a name, the ratio or the share is not known.
        """
        names = [name for name in methods if isinstance(name, str)] if isinstance(methods, Sequence) else []
        if not 1 <= len(names) <= self.methods:
            raise InputError(f"{len(names)} methods are chosen. Choose 1 to {self.methods}.")
        ratio, share = _number("keep", keep), _number("recovery", recovery)
        try:
            validate_keep(ratio)
        except ValueError as error:
            raise InputError(str(error)) from error
        specs = []
        for name in names:
            method = method_class(name)
            recovers = share > 0 and method is not None and "recovery" in setting_types(method)
            specs.append(f"{name}:recovery={share:g}" if recovers else name)
        return parse_methods(specs, keep=[ratio])

    def read_new_tokens(self, count: object) -> int:
        """The length of an answer.

        Raises:
            InputError: when it is out of range.
        """
        if isinstance(count, bool) or not isinstance(count, (int, float)) or not 1 <= count <= self.new_tokens:
            raise InputError(f"{count!r} tokens per answer: expected 1 to {self.new_tokens}.")
        return int(count)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{name}={value!r} is not a number.")
    return float(value)
