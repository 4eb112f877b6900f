"""Matrices as the bytes that `MatMulNBits` wants: [N, blocks, bytes of a block], and FP32 scales [N, blocks].

A column of a matrix [K, N] is cut into blocks, the last one padded with zeros. A number is
`(whole number - zero point) * scale of its block`; the zero point is the operator's default, half of the range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Matrix = npt.NDArray[np.float32]
    Packed = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]

_ZERO_8, _LARGEST_8 = 128, 127
_ZERO_4, _HIGHEST_4, _NIBBLE = 8, 15, 4
_TINY: Final = np.finfo(np.float32).tiny


def int8(matrix: Matrix, block: int) -> Packed:
    """One byte a number, symmetric: 1 to 255 around 128."""
    blocks = _blocks(matrix, block)
    scales = np.asarray(np.abs(blocks).max(axis=2) / _LARGEST_8, np.float32)
    whole = np.rint(blocks / _divisor(scales)) + _ZERO_8
    return np.clip(whole, 1, 255).astype(np.uint8), scales


def int4(matrix: Matrix, block: int) -> Packed:
    """Two numbers a byte, the first one in the low half; 0 to 15 around 8.

    The scale has the sign that puts a block's largest magnitude on the side that reaches farther, at -8: sixteen
    steps are used and not fifteen.
    """
    blocks = _blocks(matrix, block)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    scales = np.asarray(largest / -_ZERO_4, np.float32)
    whole = np.clip(np.rint(blocks / _divisor(scales)) + _ZERO_4, 0, _HIGHEST_4).astype(np.uint8)
    packed = whole[:, :, 0::2] | np.left_shift(whole[:, :, 1::2], np.uint8(_NIBBLE))
    return np.asarray(packed, np.uint8), scales


def _blocks(matrix: Matrix, block: int) -> Matrix:
    """The columns in blocks: [N, blocks, block]."""
    rows, columns = matrix.shape
    count = -(-rows // block)
    padded = np.zeros((columns, count * block), np.float32)
    padded[:, :rows] = matrix.T
    return padded.reshape(columns, count, block)


def _divisor(scales: Matrix) -> Matrix:
    """The scales to divide by; those of blocks of zeros, or of next to nothing, are 1."""
    return np.where(np.abs(scales) < _TINY, np.float32(1), scales)[:, :, None]
