"""Apache Kafka's jars on a JDK of this machine: fetched once by Maven, started fast afterwards.

The committed `services/cli/kafka/pom.xml` says what is needed; the cache directory is named by its digest, so a changed
pom is another cache. Jars are copied into a directory of another name that is renamed when complete: an interrupted
download leaves nothing that looks finished. A lock keeps two stacks from fetching at once.

Starts are made fast by a class-data archive (JEP 350): half of a broker's start is loading and verifying classes. It
belongs to one JDK, hence its name. `kafka_apache.py` makes it; without it everything works, a few seconds later.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli.local.errors import CommandFailedError, KafkaUnavailableError
from services.cli.local.events import StackEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.cli.local.events import OnEvent
    from services.cli.local.processes import Processes

DATA = Path(__file__).parent.parent / "kafka"
_POM = DATA / "pom.xml"
_OLDEST_JDK = 17
_FETCH_TIMEOUT_S = 900.0
_SMALL_AND_QUICK = (
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",  # no file in /tmp that a killed JVM would leave behind
    "-XX:+ExitOnOutOfMemoryError",  # supervision restarts a dead broker, not a half-dead one
    "-Djava.awt.headless=true",
)


@dataclass(frozen=True, slots=True)
class KafkaRuntime:
    """A java binary and the jars; `home` is their directory in the cache."""

    java: str
    java_version: str
    home: Path

    @property
    def archive(self) -> Path:
        """The class-data archive for this JDK, whether it exists or not."""
        return self.home / f"classes-{self.java_version}.jsa"

    def argv(self, main_class: str, *args: str, jvm_options: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The command that runs one of Kafka's classes. The class path is sorted: the archive depends on its order."""
        class_path = ":".join(str(jar) for jar in sorted((self.home / "jars").iterdir()))
        shared = (f"-XX:SharedArchiveFile={self.archive}",) if self.archive.exists() else ()
        logging = f"-Dlog4j2.configurationFile={DATA / 'log4j2.xml'}"
        return (self.java, "-cp", class_path, logging, *_SMALL_AND_QUICK, *shared, *jvm_options, main_class, *args)


def kafka_version() -> str:
    """The version that the pom asks for."""
    found = re.search(r"<kafka\.version>(.+?)</kafka\.version>", _POM.read_text())
    if found is None:
        raise KafkaUnavailableError(f"{_POM} names no kafka.version: restore the file from the package.")
    return found[1]


async def runtime(cache_dir: Path, processes: Processes, on_event: OnEvent) -> KafkaRuntime:
    """Find Java, and the jars in the cache; fetch them first if they are not there.

    Raises:
        KafkaUnavailableError: no JDK 17, no Maven, or Maven failed; says which.
    """
    java, java_version = await _find_java()
    digest = hashlib.sha256(_POM.read_bytes()).hexdigest()
    home = cache_dir / f"kafka-{kafka_version()}-{digest[:8]}"
    async with locked(home):
        if not (home / "jars").is_dir():
            await _fetch(home, processes, on_event)
    return KafkaRuntime(java, java_version, home)


async def _find_java() -> tuple[str, str]:
    in_home = Path(os.environ.get("JAVA_HOME", "/nonexistent")) / "bin" / "java"
    java = str(in_home) if in_home.exists() else shutil.which("java")
    if java is None:
        raise KafkaUnavailableError(
            f"Apache Kafka needs Java {_OLDEST_JDK} or newer; no `java` is on PATH or in JAVA_HOME: install a JDK."
        )
    process = await asyncio.create_subprocess_exec(
        java, "-version", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode(errors="replace")
    version = re.search(r'version "((\d+)[^"]*)"', output)
    if version is None or int(version[2]) < _OLDEST_JDK:
        raise KafkaUnavailableError(
            f"Apache Kafka needs Java {_OLDEST_JDK} or newer, and `{java} -version` says {output.strip()!r}: "
            "install a newer JDK, or point JAVA_HOME at one."
        )
    return java, version[1]


async def _fetch(home: Path, processes: Processes, on_event: OnEvent) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailableError(
            "Apache Kafka's jars are fetched by Maven, and there is no `mvn` on PATH: install it."
        )
    on_event(StackEvent("kafka", "preparing", f"fetching Apache Kafka {kafka_version()} (once, about 45 MB)"))
    unfinished = home / "jars.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    # An absolute goal, so that only the pinned plugin can answer; -f, so that no project of the user's is looked at.
    goal = ("dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={unfinished}")
    try:
        await processes.run((maven, "-q", "-B", "-f", str(_POM), *goal), home / "fetch.log", _FETCH_TIMEOUT_S)
    except CommandFailedError as err:
        raise KafkaUnavailableError(
            "Apache Kafka's jars could not be fetched: see that Maven reaches its repository "
            f"(a mirror is set in ~/.m2/settings.xml), then try again. {err}"
        ) from err
    unfinished.rename(home / "jars")


@asynccontextmanager
async def locked(home: Path) -> AsyncIterator[None]:
    """Hold the lock of this cache entry: one stack at a time prepares it. The kernel frees it if we die."""
    home.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a few system calls at start-up, nothing else runs yet
    with (home / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.2)
        yield
