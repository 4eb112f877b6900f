"""Why a local stack did not start. Every message is a sentence that says what to do.

LocalStackError
├── StackRunningError        stack_running        another stack owns the data directory
├── PortsTakenError          ports_taken          no free port near the usual one
├── KafkaUnavailableError    kafka_unavailable    no broker can be had, or not the one that was asked for
├── RedisUnavailableError    redis_unavailable    no Redis can be had
├── CommandFailedError       command_failed       a preparing command (Maven, the storage tool) failed
└── ChildFailedError         child_failed         a child died or did not become ready; its last lines are shown
"""

from __future__ import annotations

from shared.errors import AiaasError


class LocalStackError(AiaasError):
    """The stack can't run as asked; the message says what to change."""

    code = "local_stack"


class StackRunningError(LocalStackError):
    """Another stack owns the data directory."""

    code = "stack_running"


class PortsTakenError(LocalStackError):
    """No port is free near the usual one."""

    code = "ports_taken"


class KafkaUnavailableError(LocalStackError):
    """No broker can be had as asked."""

    code = "kafka_unavailable"


class RedisUnavailableError(LocalStackError):
    """No Redis can be had as asked."""

    code = "redis_unavailable"


class CommandFailedError(LocalStackError):
    """A command that prepares something failed or took too long."""

    code = "command_failed"


class ChildFailedError(LocalStackError):
    """A child died, or did not become ready in time."""

    code = "child_failed"
