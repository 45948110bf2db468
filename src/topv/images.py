"""Decoding images that come from anywhere: their size is checked first."""

from __future__ import annotations

import io
import warnings
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_ASPECT", "MAX_BYTES", "MAX_PIXELS", "image_size", "open_image"]

MAX_PIXELS = 64_000_000
"""Largest image, in pixels, that `open_image` decodes by default: enough for a 50-megapixel camera."""

MAX_BYTES = 1 << 29
"""Largest image file, in bytes, that `open_image` reads: as much as the largest image takes uncompressed."""

MAX_ASPECT = 200
"""Largest ratio of an image's sides: processors scale the short side up, so a 1-pixel strip would become huge."""

# Formats whose decoders neither start other programs nor fetch anything.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_SMALLER = "Scale the image down, or raise max_pixels if you trust it."


def open_image(source: str | PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an untrusted image file, once its header says that it is of a reasonable size.

    Args:
        source: the path of the file, or its content.
        max_pixels: largest width * height to decode.

    Returns:
        The image in RGB, turned upright by its EXIF orientation; transparent parts are white.

    Raises:
        InputError: when there is no such file, or it is empty, not an image, damaged, or too large.
    """
    from PIL import Image, ImageOps

    content, name = _content(source)
    with warnings.catch_warnings():
        # Our own limit is checked below, before anything is decoded.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise InputError(f"{name} is far larger than {max_pixels:,} pixels. {_SMALLER}") from error
        except Exception as error:
            raise InputError(
                f"{name} is not an image that can be read: expected {', '.join(_FORMATS)}. Its first bytes are "
                f"{content[:8]!r}."
            ) from error
        _check_size(image.size, name, max_pixels)
        try:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
        except Exception as error:
            raise InputError(f"{name} is a damaged {image.format} image: {error}. Save it anew.") from error


def image_size(path: str | PathLike[str]) -> tuple[int, int] | None:
    """Width and height that an image file's header gives, without decoding it; None where it gives none."""
    from PIL import Image

    try:
        # Opening anything but a plain file, such as a pipe, may never return.
        if not Path(path).is_file():
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return image.size
    except Exception:  # a damaged header makes Pillow raise what it likes; whoever reads the file says what is wrong
        return None


def _content(source: str | PathLike[str] | bytes) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        name, content = "the image", source
    else:
        path = Path(source).expanduser()
        name = f"image {str(source)!r}"
        if not path.exists():
            raise InputError(f"{name} does not exist. Expected the path of an image file.")
        if not path.is_file():
            raise InputError(f"{name} is not a file. Expected the path of an image file.")
        try:
            if (size := path.stat().st_size) > MAX_BYTES:
                raise InputError(f"{name} is a file of {size:,} bytes, more than the limit of {MAX_BYTES:,}.")
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{name} cannot be read: {error.strerror}.") from error
    if not content:
        raise InputError(f"{name} is empty (0 bytes). Expected an image file: {', '.join(_FORMATS)}.")
    return content, name


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name} has no pixels: {width} x {height}.")
    if width * height > max_pixels:
        raise InputError(
            f"{name} would decode to {width} x {height} = {width * height:,} pixels, more than the limit of "
            f"{max_pixels:,}. {_SMALLER}"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise InputError(
            f"{name} is {width} x {height}: one side is more than {MAX_ASPECT} times the other, which processors "
            "would blow up to a huge picture. Crop it."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit greys to 255 instead of scaling them.
        image = image.point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
