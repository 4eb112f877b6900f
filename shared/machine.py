"""What kind of machine this is, as far as it changes the speed or a bit of an answer."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_BEST_FIRST = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "avx", "sse4_2", "asimddp", "asimd")
"""Instruction sets that kernels of ONNX Runtime choose between, as /proc/cpuinfo names them."""
_X86 = ("x86_64", "AMD64", "i386", "i686")
_SUM_BYTES_IN_32_BITS = ("amx_int8", "avx512_vnni", "avx_vnni")


@cache
def isa() -> str:
    """The architecture and its best vector extension, such as `x86_64-avx512_vnni`."""
    machine = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return machine
    lines = cpuinfo.read_text(errors="replace").splitlines()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    best = next((name for name in _BEST_FIRST if name in flags), None)
    return f"{machine}-{best}" if best else machine


def cuts_off_sums() -> bool:
    """Whether INT8 kernels here cut off large sums: on x86 before VNNI they add two products of 8 bits in 16.

    Products with weights of 7 bits always fit
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When to use reduce-range").
    """
    return isa().startswith(_X86) and not isa().endswith(_SUM_BYTES_IN_32_BITS)
