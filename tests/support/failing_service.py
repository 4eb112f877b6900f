"""A service of which one background job fails: `python failing_service.py registry|heartbeats|replies`.

Settings come from the environment, as everywhere. It says `serving` before the job fails.
"""

import asyncio
import sys
from contextlib import AsyncExitStack, asynccontextmanager

from shared import compacted, heartbeats, kafka, logs, process, registry_log, reply_waiter
from shared.settings import PlatformSettings, read

FAILS_AFTER_S = 0.3


async def fail(*_):
    await asyncio.sleep(FAILS_AFTER_S)
    raise ValueError("a bug in the background")


class Replies:
    """Of a Redis client, as much as is asked for before it fails."""

    ping = fail

    @asynccontextmanager
    async def announcements(self, _instance):
        await asyncio.Event().wait()
        yield


async def serve(settings, stop, what):
    async with AsyncExitStack() as stack:
        if what == "replies":
            await stack.enter_async_context(reply_waiter.ReplyWaiter(Replies(), "gateway"))
        else:
            await kafka.ensure_topics(settings)
        if what == "heartbeats":
            compacted._read = fail
            await stack.enter_async_context(heartbeats.follow(settings))
        if what == "registry":
            registry_log.RegistryLog.run = fail
            await stack.enter_async_context(registry_log.follow(settings, None))
        logs.get().info("serving")
        await stop.wait()


def main():
    settings = read(PlatformSettings)
    logs.configure("failing", settings)
    process.run(lambda stop: serve(settings, stop, sys.argv[1]))


if __name__ == "__main__":
    main()
