"""Encoded pictures to numbers; the only import of Pillow.

Pictures come from anyone: only three decoders are reachable, pixels are counted from the header before any is decoded,
an animation counts as its first frame, and a picture that is cut short is refused. In JSON, which can't carry bytes,
a picture is a data URL (RFC 2397): `data:image/png;base64,…`.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shared.errors import InvalidInput
from shared.tensors import DTYPES, bytes_elements, from_numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shared.processing import DecodeImage
    from shared.tensors import Array, Tensor

FORMATS: Final = ("JPEG", "PNG", "WEBP")
MAX_PIXELS: Final = 40_000_000
"""Of one picture: 120 MB as RGB while it is decoded."""
MAX_TENSOR_BYTES: Final = 64 * 1024 * 1024
"""What the pictures of one request may become."""
_MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
"""Eight bits a channel; Pillow turns what has sixteen into white."""
_RESAMPLE: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_DATA_URL: Final = re.compile(rb"data:image/[a-z.+-]{1,40};base64,")

Image.MAX_IMAGE_PIXELS = None  # the bound is ours: Pillow's would be a warning on stderr


class ImageDecoder:
    """One `DecodeImage` step. `datatypes` are those of the inputs that it fills."""

    def __init__(self, step: DecodeImage, datatypes: Mapping[str, str]) -> None:
        self._step = step
        self._dtype = DTYPES[datatypes[step.output]]
        channels = np.ones(step.channels, np.float64)
        mean, std = channels * step.mean, channels * step.std
        self._scale = (step.scale / std).astype(np.float32)
        self._shift = (-mean / std).astype(np.float32)

    def decode(self, pictures: Tensor, check_time: Callable[[], None]) -> list[Tensor]:
        """[rows] of encoded pictures to [rows, …], laid out as declared; `check_time` raises when time is up.

        Raises:
            InvalidInput: an element is no such picture, too large, or cut short; too many pictures together.
        """
        step = self._step
        elements = bytes_elements(pictures)
        size_bytes = len(elements) * math.prod(step.row_shape) * self._dtype.itemsize
        if size_bytes > MAX_TENSOR_BYTES:
            raise InvalidInput(f"input {pictures.name!r} makes {size_bytes} bytes of pixels, above {MAX_TENSOR_BYTES}")
        rows = np.empty((len(elements), *step.row_shape), self._dtype)
        for index, element in enumerate(elements):
            check_time()
            rows[index] = self._row(element, f"element {index} of {pictures.name!r}")
        return [from_numpy(step.output, rows)]

    def _row(self, element: bytes, what: str) -> Array:
        picture = self._fitted(_upright(_content(element, what), what, self._step.color))
        pixels = np.asarray(picture, np.float32).reshape(picture.height, picture.width, self._step.channels)
        numbers = pixels * self._scale + self._shift
        if self._dtype.kind in "iu":
            limits = np.iinfo(self._dtype)
            numbers = np.clip(np.rint(numbers), limits.min, limits.max)
        if self._step.layout == "NCHW":
            numbers = numbers.transpose(2, 0, 1)
        return numbers.reshape(self._step.row_shape)

    def _fitted(self, picture: Image.Image) -> Image.Image:
        step, resample = self._step, _RESAMPLE[self._step.resample]
        size = (step.width, step.height)
        match step.fit:
            case "fill":
                return picture.resize(size, resample)
            case "contain":
                return ImageOps.pad(picture, size, resample)
            case "cover":
                # The part of the picture that fills the frame, and of that the share to keep; resized in one step.
                ratio = min(picture.width / step.width, picture.height / step.height) * step.crop
                width, height = step.width * ratio, step.height * ratio
                left, top = (picture.width - width) / 2, (picture.height - height) / 2
                return picture.resize(size, resample, box=(left, top, left + width, top + height))


def _content(element: bytes, what: str) -> bytes:
    """The picture's bytes, out of a data URL if it is one."""
    url = _DATA_URL.match(element)
    if url is None:
        return element
    try:
        return base64.b64decode(element[url.end() :], validate=True)
    except binascii.Error as err:
        raise InvalidInput(f"{what} is a data URL with malformed base64: {err}") from err


def _upright(content: bytes, what: str, color: str) -> Image.Image:
    """The picture decoded, turned as its EXIF data say, without transparency, in `color`."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            _check_header(picture, what)
            picture.load()
            turned = ImageOps.exif_transpose(picture)
            if turned.has_transparency_data:
                background = Image.new("RGBA", turned.size, "white")
                turned = Image.alpha_composite(background, turned.convert("RGBA"))
            return turned.convert(color)
    except InvalidInput:
        raise
    except UnidentifiedImageError as err:
        raise InvalidInput(f"{what} is not a picture in {', '.join(FORMATS)}") from err
    except Exception as err:  # decoders raise whatever they like, struct.error and SyntaxError included
        raise InvalidInput(f"{what} can't be decoded: {str(err)[:200] or type(err).__name__}") from err


def _check_header(picture: Image.Image, what: str) -> None:
    """Refuse what should not be decoded at all. Nothing but the header has been read yet."""
    if (pixels := picture.width * picture.height) > MAX_PIXELS:
        raise InvalidInput(f"{what} has {pixels} pixels, above {MAX_PIXELS}")
    if picture.mode not in _MODES:
        raise InvalidInput(f"{what} has pixels of mode {picture.mode!r}: only eight bits a channel are known")
