"""The local stack: Kafka, Redis and the services as supervised child processes, without Docker.

    async with LocalStack(settings, standard_services(workers=2), on_event=print) as stack:
        stack.urls["gateway"]                # ready means ready: every health check has passed
        stack.environment()                  # AIAAS_* for clients
        await stack.child("worker-1").kill() # supervision brings it back, on the same port, with its data

How it hangs together, from the top:

    stack.py        the order of things: lock, ports, Kafka and Redis, services; drained in reverse
    foreground.py   `aiaas up`: a stack that is held until SIGINT or SIGTERM
    record.py       run/stack.json, so that others can see, signal and stop a running stack (`status`, `down`, tests)
    services.py     which service gets which port and variables
    kafka.py        which broker: a given one, Apache Kafka, or the embedded one; kafka_runtime.py fetches its jars
    redis.py        which Redis: a given one, or the bundled Valkey
    supervisor.py   one child: started, probed, restarted with back-off, stopped; probes.py says what ready is
    processes.py    how a process is started so that it can't outlive us; leash.py and warden.py are its two helpers
    ports.py        free ports, kept apart from other stacks on this machine
    child_logs.py   the children's output: bounded files, and the last lines for whoever must know why

Nothing survives the stack, whatever ends it. Direct children die by the kernel's hand when their parent does
(`leash.py`, Linux); their own children lie in the same process group, which a warden kills when the pipe that only the
stack holds open breaks (`warden.py`). Deliberately missing: judging a child that runs but hangs (it is left to its
readiness check and to people), and anything distributed: scale-out is Kafka's and the orchestrator's.
"""

from services.cli.local.errors import LocalStackError
from services.cli.local.events import StackEvent
from services.cli.local.foreground import hold
from services.cli.local.record import RunningStack, stop_stack
from services.cli.local.services import Service, standard_services
from services.cli.local.settings import LocalStackSettings
from services.cli.local.stack import LocalStack

__all__ = [
    "LocalStack",
    "LocalStackError",
    "LocalStackSettings",
    "RunningStack",
    "Service",
    "StackEvent",
    "hold",
    "standard_services",
    "stop_stack",
]
