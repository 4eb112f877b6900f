"""Landlock: from here on this process, and what it starts, reaches a few files and no TCP.

The kernel's own means for a process to give rights away (https://docs.kernel.org/userspace-api/landlock.html): no
privileges needed, nothing to undo it. Read: this Python, its packages, our sources, the system's libraries, what
libraries look up about the machine. Write: the working directory. Execute: nothing. It also keeps the process from
looking into others (their `/proc/PID/environ`) and, on newer kernels, from signalling them.

Kernels without it are told by `restrict` returning 0: the child then runs with the other limits alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every architecture
_VERSION_FLAG: Final = 1
_BENEATH: Final = 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER: Final = 1 << 13
"""To move files from one directory to another, if both have it: TensorFlow does, where it saves variables."""
_TRUNCATE: Final = 1 << 14
_READ: Final = _READ_FILE | _READ_DIR
_OWN: Final = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
_OF_FILES: Final = _WRITE_FILE | _READ_FILE | _TRUNCATE
_HANDLED: Final = ((1, 13), (2, 14), (3, 15), (5, 16))
"""Since which version how many rights there are."""
_TCP: Final = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 0b11
_NET_SINCE, _SCOPES_SINCE = 4, 6
_SYSTEM: Final = (
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/dev/urandom",
)
_SOURCES: Final = Path(__file__).resolve().parents[3]


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def restrict() -> int:
    """Do it; returns the kernel's version of Landlock, 0 where there is none.

    Raises:
        OSError: it is there and refuses.
    """
    if sys.platform != "linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    version = int(libc.syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION_FLAG))
    if version < 1:
        return 0
    handled = (1 << max(rights for since, rights in _HANDLED if since <= version)) - 1
    rules = _Ruleset(
        handled,
        _TCP if version >= _NET_SINCE else 0,
        _ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPES_SINCE else 0,
    )
    ruleset = _called(libc, _CREATE, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), 0)
    try:
        for path, allowed in _rules():
            _allow(libc, ruleset, path, allowed & handled)
        _called(libc, _RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _rules() -> Iterable[tuple[str, int]]:
    yield os.getcwd(), _OWN  # noqa: PTH109 - as it is, and no Path around it
    yield "/dev/null", _READ_FILE | _WRITE_FILE
    packages = (path for path in sys.path if path and Path(path).resolve() != _SOURCES)
    ours = (str(_SOURCES / name) for name in ("services", "shared"))
    for path in dict.fromkeys((sys.prefix, sys.base_prefix, *packages, *ours, *_SYSTEM)):
        yield path, _READ


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, allowed: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there needs no rule
    try:
        rule = _Beneath(allowed if Path(path).is_dir() else allowed & _OF_FILES, parent)
        _called(libc, _ADD_RULE, ruleset, _BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)


def _called(libc: ctypes.CDLL, number: int, *arguments: object) -> int:
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"landlock (system call {number})")
    return result
