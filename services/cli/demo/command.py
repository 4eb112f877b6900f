"""The command: a fresh stack in a directory of its own, the story told against it, and everything stopped again."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import time
import uuid
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient

from services.cli.errors import CommandError, NotTried
from services.cli.local import LocalStack, LocalStackSettings, RunningStack, standard_services
from services.cli.printing import console
from services.cli.stack import EventLines
from shared.kafka import client_options, started
from shared.settings import read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rich.console import Console

_FORGET_TIMEOUT_S = 15.0
_NEEDED = ("confluent_kafka", "magika", "onnxruntime", "onnxscript", "sklearn", "torch")


def demo() -> None:
    """See it work: two real models uploaded, gated, and served by HTTP and from Kafka. Takes about a minute."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise NotTried(f"The demo needs {', '.join(missing)}: `make demo`, or pip install 'aiaas[demo]'.")
    started_s = time.monotonic()
    out = console()
    settings = read(LocalStackSettings)
    asyncio.run(_run(out, settings))
    took_s = time.monotonic() - started_s
    out.print(f"\n[bold green]The demo is through[/] in {took_s:.0f} s; everything it started has stopped.")


async def _run(out: Console, settings: LocalStackSettings) -> None:
    """Start the stack, tell the story in a thread, stop the stack."""
    from services.cli.demo.place import Place  # noqa: PLC0415 - as below
    from services.cli.demo.story import tell  # noqa: PLC0415 - what it imports is heavy and optional

    cache_dir, root = settings.root / "cache", settings.root / "demo"
    _wipe(root)
    # In a Kafka that is not ours others may have topics by the usual names.
    prefix = "aiaas." if settings.starts_kafka() else f"aiaas-demo-{uuid.uuid4().hex[:8]}."
    mine = settings.model_copy(update={"data_dir": root, "topic_prefix": prefix})
    services = [dataclasses.replace(each, env={"AIAAS_TOPIC_PREFIX": prefix}) for each in standard_services(workers=1)]
    out.print("[bold]1. Kafka, Redis and the four services start[/]")
    async with _forgotten(mine), LocalStack(mine, services, on_event=EventLines(out)) as stack:
        place = Place(
            gateway_url=stack.urls["gateway"],
            monitor_url=stack.urls["monitor"],
            bootstrap_servers=stack.environment()["AIAAS_KAFKA_BOOTSTRAP_SERVERS"],
            topics=mine.topics,
            cache_dir=cache_dir,
            environment={**stack.environment(), "AIAAS_TOPIC_PREFIX": prefix},
            report_path=root / "report.html",
        )
        try:
            await asyncio.to_thread(tell, out, place)
        except CommandError:
            out.print(f"\n[bold red]Something is off[/]; what the services say is in {root / 'logs'}", soft_wrap=True)
            raise
        finally:
            out.print("\n[bold]Stopping[/]")


@asynccontextmanager
async def _forgotten(settings: LocalStackSettings) -> AsyncIterator[None]:
    """In a Kafka that is not the stack's own, delete the demo's topics at the end; they have a prefix of their own."""
    try:
        yield
    finally:
        if not settings.starts_kafka():
            with suppress(TimeoutError):  # that Kafka has gone, which the demo has said before
                await asyncio.wait_for(_delete_topics(settings), _FORGET_TIMEOUT_S)


async def _delete_topics(settings: LocalStackSettings) -> None:
    async with started(lambda: AIOKafkaAdminClient(**client_options(settings)), "deleting the demo's topics") as admin:
        await admin.delete_topics([name for name in await admin.list_topics() if settings.topics.is_ours(name)])


def _wipe(root: Path) -> None:
    """Forget the last demo.

    Raises:
        CommandError: it still runs.
    """
    other = RunningStack.find(root)
    if other is not None:
        raise CommandError(f"A demo already runs in {root} (process {other.pid}): wait for it, or stop it with Ctrl-C.")
    shutil.rmtree(root, ignore_errors=True)
