"""An optimizer that dies of a step: `python -m tests.support.dying_optimizer`.

DIES_AFTER   a step, or `*` for any: as soon as it is in the log that this is finished
DIES_BEFORE  the same: when this is finished, and would be told to the log next

It kills itself, so that what it was at when it died does not depend on who was how fast.
"""

from __future__ import annotations

import os
import signal

from services.optimizer.__main__ import main
from shared.events import StepFinished
from shared.registry_log import RegistryLog

publish = RegistryLog.publish


async def publish_and_die(log, event):
    if is_in("DIES_BEFORE", event):
        die()
    registry = await publish(log, event)
    if is_in("DIES_AFTER", event):
        die()
    return registry


def is_in(variable, event):
    return isinstance(event, StepFinished) and os.environ.get(variable) in {"*", event.step}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    RegistryLog.publish = publish_and_die
    main()
