"""`aiaas up`, `down` and `status`: the local stack from the command line.

The stack itself is `services.cli.local`; here is what a person sees of it. `up --detach` is the same `up` in a session
of its own, watched through the record that every stack keeps.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.client import Gateway
from services.cli.errors import CommandError
from services.cli.local import LocalStack, LocalStackSettings, RunningStack, hold, standard_services, stop_stack
from services.cli.local.child_logs import open_for_child, tail
from services.cli.printing import Json, as_json, console, size, table
from shared.settings import read

if TYPE_CHECKING:
    from rich.console import Console

    from services.cli.local import StackEvent

Workers = Annotated[int | None, typer.Option(min=0, max=64, help="How many workers; AIAAS_WORKERS, else one.")]
_STYLES = {"ready": "green", "died": "red", "failed": "bold red", "warning": "yellow"}
_POLL_S = 0.2


def up(
    *,
    workers: Workers = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it is ready; `aiaas down` stops it.")
    ] = False,
) -> None:
    """Start the whole platform on this machine, without Docker, and keep it until Ctrl-C."""
    settings = read(LocalStackSettings)
    count = settings.workers if workers is None else workers
    if detach:
        _detach(settings, count)
        return
    out = console()
    out.print(f"aiaas: starting Kafka, Redis and the services; data and logs in {settings.root}", soft_wrap=True)
    stack = LocalStack(settings, standard_services(count, settings.gateways), on_event=EventLines(out))
    asyncio.run(hold(stack, lambda ready: _announce(out, ready.urls, "Ctrl-C stops it.")))


def down(*, json: Json = False) -> None:
    """Stop the stack that runs on this data directory, and wait until it has drained."""
    stopped = asyncio.run(stop_stack(read(LocalStackSettings).root))
    if json:
        as_json({"stopped": stopped})
    else:
        console().print("stopped" if stopped else "no stack was running")


def status(*, json: Json = False) -> None:
    """The running stack: its processes and URLs. Exit code 1 if none runs or something is not ready."""
    root = read(LocalStackSettings).root
    stack = RunningStack.find(root)
    if json and stack:
        as_json({**stack.model_dump(mode="json", exclude={"environment"}), "urls": _shown(stack.urls)})
    elif json:
        as_json({"ready": False, "root": str(root)})
    elif stack:
        _show(stack)
    if stack is None:
        raise CommandError(f"No stack runs on {root}: `aiaas up` starts one.")
    if not stack.ready or any(child.state != "ready" for child in stack.children.values()):
        raise typer.Exit(1)


class EventLines:
    """What the stack tells, as lines `kafka      ready in 2.1 s`."""

    def __init__(self, out: Console) -> None:
        self._out = out

    def __call__(self, event: StackEvent) -> None:
        """Print one event."""
        self._out.print(f"  {event.subject:<11}", end="", markup=False)
        self._out.print(event.message, style=_STYLES.get(event.phase), markup=False, soft_wrap=True)


def _announce(out: Console, urls: dict[str, str], how_it_ends: str) -> None:
    shown = table("ready", "where")
    for name, url in _shown(urls).items():
        shown.add_row(name, url)
    out.print()
    out.print(shown)
    out.print(
        f"\nHTTP API: {urls.get('gateway', '')}/docs    Metrics: {urls.get('monitor', '')}/metrics", soft_wrap=True
    )
    out.print(how_it_ends)


def _show(stack: RunningStack) -> None:
    urls = _shown(stack.urls)
    shown = table("process", "state", "pid", "restarts", "where", "log")
    for name, child in stack.children.items():
        style = "green" if child.state == "ready" else "yellow"
        state = f"[{style}]{child.state}[/]"
        shown.add_row(name, state, str(child.pid or ""), str(child.restarts), urls.get(name, ""), str(child.log))
    console().print(shown)
    _show_instances(urls.get("gateway"))
    for name in sorted(urls.keys() - stack.children.keys()):  # servers that were given to the stack
        console().print(f"{name}: {urls[name]}")


def _show_instances(gateway: str | None) -> None:
    """What workers and optimizers say of their machines; nothing where no gateway can be asked."""
    if gateway is None:
        return
    try:
        with Gateway(gateway) as asked:
            found = asked.workers()
    except CommandError:
        return  # its state is in the table above
    shown = table("instance", "engines", "providers", "threads", "machine", "holds")
    for each in found:
        machine = each["machine"]
        engines = ", ".join(f"{name} {version}" for name, version in machine["engines"].items())
        about = f"{machine['isa']}, {machine['cpus']} CPUs, {size(machine['memory_bytes'])}, Python {machine['python']}"
        holds = ", ".join(f"{held['model']} {held['version']}" for held in each["loaded"])
        shown.add_row(each["instance"], engines, ", ".join(machine["providers"]), str(machine["threads"]), about, holds)
    if found:
        console().print(shown)


def _shown(urls: dict[str, str]) -> dict[str, str]:
    """The URLs without the passwords that those of given servers may hold."""
    return {name: re.sub(r"//[^/@]*@", "//***@", url) for name, url in urls.items()}


def _detach(settings: LocalStackSettings, workers: int) -> None:
    """Start `aiaas up` in a session of its own, and return when it is ready.

    Raises:
        CommandError: it ended instead.
    """
    log_path = settings.root / "logs" / "stack.log"
    output = open_for_child(log_path)
    process = subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", "services.cli", "up", "--workers", str(workers)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    while True:
        stack = RunningStack.find(settings.root)
        if stack is not None and stack.pid == process.pid and stack.ready:
            _announce(console(), stack.urls, "`aiaas status` shows it, `aiaas down` stops it.")
            return
        if process.poll() is not None:
            raise CommandError(f"The stack did not start; the last lines of {log_path}:\n{tail(log_path)}")
        time.sleep(_POLL_S)
