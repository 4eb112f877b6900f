"""An environment for each peer under `.bench/peers`, made with uv the first time and kept; nothing of ours is in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.serving.systems import NotHere

_WITH_ALL = ("numpy", "onnxruntime", "orjson", "uvloop")
_TIMEOUT_S = 600.0


def python_of(peer: str, directory: Path) -> Path:
    """The Python of the peer's environment, with the peer installed and the same ONNX Runtime as here.

    Raises:
        NotHere: it can't be installed here; with uv's last line.
    """
    home = directory / peer
    python = home / "bin" / "python"
    if (home / "installed").exists():
        return python
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise NotHere("uv is not here")
    constraints = home.with_suffix(".constraints")
    constraints.parent.mkdir(parents=True, exist_ok=True)
    constraints.write_text(f"onnxruntime=={_version('onnxruntime')}\n")
    _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home))
    _run(uv, "pip", "install", "--quiet", "--python", str(python), "-c", str(constraints), peer, *_WITH_ALL)
    (home / "installed").touch()
    return python


def versions(directory: Path) -> dict[str, str]:
    """What is installed of the peers, by name."""
    homes = [home for home in sorted(directory.glob("*")) if (home / "installed").exists()]
    return {home.name: version_in(home / "bin" / "python", home.name) for home in homes}


def version_in(python: Path, package: str) -> str:
    """The installed version of a package, empty if there is none."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip()


def _version(package: str) -> str:
    return version_in(Path(sys.executable), package)


def _run(*argv: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as err:
        raise NotHere(f"installing took more than {_TIMEOUT_S:g} s") from err
    if done.returncode:
        raise NotHere(f"does not install: {' '.join(done.stderr.split())[-500:]}")
