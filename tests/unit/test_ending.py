"""A process ends with its exit code and all its output, before the interpreter is taken apart."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import atexit, sys, threading
from shared import ending
with ending.of_the_process():
    atexit.register(print, "at exit")
    print("x" * 100_000)
"""


def run(code):
    return subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", 0),
        ("    raise SystemExit(3)", 3),
        ("    raise SystemExit", 0),
        ("    raise SystemExit('in words')", 1),
        ("    raise ValueError('unexpected')", 1),
        ("    raise KeyboardInterrupt", 130),
    ],
)
def test_the_exit_code_is_that_of_what_was_raised_and_all_output_is_there(code, expected):
    done = run(code)
    assert done.returncode == expected, done.stderr
    assert done.stdout == f"{'x' * 100_000}\nat exit\n"
    if "raise" in code and expected == 1:
        assert code.split("'")[1] in done.stderr


def test_threads_of_python_are_waited_for():
    done = run("    threading.Timer(0.2, print, ['later']).start()")
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["later", "at exit"])


def test_the_interpreter_is_not_taken_apart():
    """What would be called then stands for a native thread that comes back for Python's lock."""
    code = "    import os\n    last = type('Last', (), {'__del__': lambda _: os.write(2, b'taken apart')})()"
    assert run(code).stderr == ""
