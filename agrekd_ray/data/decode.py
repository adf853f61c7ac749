"""One encoded picture as 8-bit RGB, with all that its file says of its values."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.ImageFile import ImageFile
from pydantic import Field

from agrekd_ray.settings import Count

Decoding = Annotated[Count, Field(le=2)]
"""Version of what decoding gives; another one wherever the same file gives other pixels.

1 takes the stored pixels as they are: neither orientation nor transparency counts, and what has
more than 8 bits is cut off at white. 2 shows a picture as a viewer does.
"""
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""That are decoded. A file chooses its decoder, whatever its name is, so the forty rare ones that
Pillow knows besides (one runs a program) are left to whoever converts such pictures."""
BACKGROUND = "white"
CHANGED = {
    "turned": "turned upright, as their orientation (EXIF) says",
    "scaled": "of more than 8 bits or of fractions, scaled to 8 bits",
    "composed": f"with transparency, composed on {BACKGROUND}",
}
"""What decoding changed of the stored pixels, in words."""
REMARKS = {
    **CHANGED,
    "dark": "of those scaled, darker than a sixteenth of their range: scale such files yourself",
    "first": "of several frames, of which the first is taken",
    "profile": "with a colour profile other than sRGB, which is not applied",
    "small": "smaller than what is kept of each (data.resize), so they are enlarged",
    "long": "more than twice as long as wide: less than half of each is kept",
}
"""What there is to say of decoded pictures; each of them is counted. New ones stand at the end,
for pictures that were decoded before have no count of them."""


def remarks_of(version: Decoding) -> tuple[str, ...]:
    """Which of `REMARKS` a version counts."""
    return tuple(REMARKS) if version > 1 else ()


# No viewer minds damaged EXIF either; thousands of such files would each say so.
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning, "PIL")
_Turn = Image.Transpose
_TURNS = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}
"""By orientation: what makes the picture upright."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREY_STEPS = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies grey values of 2 and of 4 bits by."""


class UnfitError(OSError):
    """A whole picture whose values do not say what they look like."""


def decode(content: bytes, side: int, version: Decoding = 2) -> tuple[np.ndarray, frozenset[str]]:
    """An encoded picture as the square in its middle, uint8 RGB [3, side, side], and its remarks.

    The shorter side is resized to `side` (bilinear, antialiased), the longer one is cut.

    Args:
        content: of the file.
        side: of the square, in pixels.
        version: see `Decoding`.

    Returns:
        The square, and which of `REMARKS` hold for it.

    Raises:
        UnfitError: the range of the values is not known, or they are outside of it.
        OSError: the bytes are no whole picture in one of `FORMATS`.
    """
    remarks: set[str] = set()
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if version == 1:  # a palette with transparency cannot become RGB at once
                image = (opened.convert("RGBA") if opened.mode == "P" else opened).convert("RGB")
            else:
                image = _shown(opened, remarks)
            if version > 1:
                remarks |= _of_size(image.size, side)
            return _square(image, side), frozenset(remarks)
    except UnidentifiedImageError:
        if content.startswith(_TIFF):
            raise UnfitError(
                "a damaged TIFF, or one whose kind of samples is not decoded; save it with 8 or 16 "
                "bits a channel"
            ) from None
        if content.startswith(b"\xff\xd8\xff"):
            raise UnfitError("a damaged JPEG, or one of other than 8 bits") from None
        text = content[:60].decode("ascii", "replace")
        start = f", and begins with the text {text!r}" if text.isprintable() and text else ""
        raise OSError(f"it would be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}{start}") from None
    except OSError:
        raise
    except Exception as error:  # decoders answer damaged files with anything
        raise OSError(str(error) or type(error).__name__) from None


def _square(image: Image.Image, side: int) -> np.ndarray:
    width, height = image.size
    factor = side / min(width, height)
    size = max(side, round(width * factor)), max(side, round(height * factor))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _of_size(size: tuple[int, int], side: int) -> set[str]:
    short, long = sorted(size)
    return {name for name, holds in (("small", short < side), ("long", long > 2 * short)) if holds}


def _shown(opened: ImageFile, remarks: set[str]) -> Image.Image:
    """The picture as a viewer shows it, RGB."""
    packing = _packing(opened)  # loading forgets it
    # A TIFF turns itself when it is loaded, and has no orientation from then on.
    if _orientation(opened) in _TURNS:
        remarks.add("turned")
    # A phone's MPO has further pictures of the same scene.
    if getattr(opened, "is_animated", False) and opened.format != "MPO":
        remarks.add("first")
    if (profile := opened.info.get("icc_profile")) and not _is_srgb(profile):
        remarks.add("profile")
    opened.load()
    image = _opaque(_in_8_bits(opened, packing, remarks), remarks)
    turn = _TURNS.get(_orientation(opened))
    return image if turn is None else image.transpose(turn)


def _packing(opened: ImageFile) -> str:
    """Pillow's name for how the file packs its pixels: `RGB;16B`."""
    arguments = opened.tile[0].args if opened.tile else ()
    name = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return name if isinstance(name, str) else ""


def _orientation(opened: ImageFile) -> int:
    try:
        orientation = opened.getexif().get(Base.Orientation)
    # What Pillow raises for damaged EXIF, which no viewer minds.
    except (SyntaxError, ValueError, TypeError, KeyError, ZeroDivisionError, struct.error):
        orientation = None
    return orientation if isinstance(orientation, int) else 1


def _is_srgb(profile: bytes) -> bool:
    return b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile


def _in_8_bits(image: ImageFile, packing: str, remarks: set[str]) -> Image.Image:
    """The picture with 8 bits a channel; a transparent value becomes a channel of its own."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})  # of a TIFF
    signed = 2 in tags.get(Base.SampleFormat, ())
    transparent = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F":
            grey, brightest = _of_fractions(values)
        else:
            known = image.mode != "I" or image.format == "PPM"  # which Pillow scales to 16 bits
            if not known or signed:
                raise UnfitError(
                    f"{'signed' if signed else '32-bit'} whole numbers from {values.min()} to "
                    f"{values.max()}, whose range no picture tells; save it with 8 or 16 bits"
                )
            bits = tags.get(Base.BitsPerSample, (16,))[0]  # some cameras have 12
            grey, brightest = (values >> (bits - 8)).astype(np.uint8), values.max() / 2**bits
        remarks.add("scaled")
        if tags.get(Base.PhotometricInterpretation) == 0:  # 0 is white
            grey = 255 - grey
        elif brightest < 1 / 16:
            remarks.add("dark")
        shown = Image.fromarray(grey)
        if isinstance(transparent, int):
            opaque = np.where(values == transparent, 0, 255).astype(np.uint8)
            shown.putalpha(Image.fromarray(opaque))
        return shown
    if signed:
        raise UnfitError("signed whole numbers, whose range no picture tells; save it with 8 bits")
    if ";16" in packing:  # Pillow keeps the upper 8 bits
        remarks.add("scaled")
        if transparent is not None:
            raise UnfitError("16 bits and one transparent colour; save it with an alpha channel")
    if packing in _GREY_STEPS and isinstance(transparent, int):
        image.info["transparency"] = transparent * _GREY_STEPS[packing]
    return image


def _of_fractions(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Fractions as uint8, and the brightest one."""
    least, most = float(values.min()), float(values.max())  # NaN, where one of them is
    if not 0 <= least <= most <= 1:
        raise UnfitError(
            f"fractions from {least:g} to {most:g}; a picture's are from 0 to 1: scale them, or "
            "save it with 8 or 16 bits"
        )
    return np.rint(values * 255).astype(np.uint8), most


def _opaque(image: Image.Image, remarks: set[str]) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image.convert("RGBA")
    if layer.getchannel("A").getextrema()[0] == 255:
        return layer.convert("RGB")
    remarks.add("composed")
    ground = Image.new("RGBA", layer.size, BACKGROUND)
    ground.alpha_composite(layer)
    return ground.convert("RGB")
