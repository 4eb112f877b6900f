"""`torch.export` programs (.pt2), from the archive that `program_archive` made of the upload."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from torch.export.pt2_archive._package import load_pt2

from services.optimizer.conversion.exporting import exporting, from_program

if TYPE_CHECKING:
    from services.optimizer.conversion.source import Source


def convert(clean: bytes, threads: int) -> Source:
    """The program, vetted.

    Raises:
        NotConvertible: torch does not load or export it.
    """
    torch.set_num_threads(threads)
    with exporting():
        (loaded,) = load_pt2(io.BytesIO(clean)).exported_programs.values()
    return from_program(loaded, None, None, "torch.export program")
