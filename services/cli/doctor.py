"""`aiaas doctor`: are Kafka, Redis and this machine set up as the platform needs them, and if not, what to change.

This module gathers the facts and prints the findings; what is right and what is wrong is said in `checks.py`.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import resource
import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError
from rich.markup import escape

from services.cli.checks import ArchiveFacts, Facts, Finding, Link, TopicFacts, examine, worst
from services.cli.printing import Json, as_json, console, table
from services.cli.where import gateway_url, platform_settings
from shared.errors import AiaasError, RepliesUnavailable
from shared.kafka import client_options, refusals_in_words
from shared.replies import server_facts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from shared.settings import PlatformSettings

_MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]fail[/]"}
_TIMEOUT_S = 10.0


def doctor(*, json: Json = False) -> None:
    """Check the settings of Kafka, Redis and this machine. Exit code 1 if something must change."""
    settings = platform_settings()
    findings = examine(asyncio.run(gather(settings)), settings.topics)
    if json:
        as_json([asdict(finding) for finding in findings])
    else:
        _show(findings)
    if worst(findings) == "fail":
        raise typer.Exit(1)


async def gather(settings: PlatformSettings) -> Facts:
    """The facts, as far as the servers answer; never raises because one does not."""
    kafka_config: Mapping[str, str] | None = None
    topics: Mapping[str, TopicFacts] = {}
    redis: Mapping[str, str] | None = None
    kafka_error = redis_error = ""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            kafka_config, topics = await _kafka_facts(settings)
    except (KafkaError, OSError, TimeoutError) as err:
        kafka_error = f"did not answer at {settings.kafka_bootstrap_servers}: {err or 'too slow'}"
    try:
        redis = await server_facts(settings)
    except RepliesUnavailable as err:
        redis_error = err.message
    return Facts(
        kafka=kafka_config,
        topics=topics,
        redis=redis,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        free_disk_bytes=shutil.disk_usage(_existing(settings.data_dir)).free,
        kafka_error=kafka_error,
        redis_error=redis_error,
        links=links(settings, gateway_url(os.environ.get("AIAAS_GATEWAY_URL"))),
        archive=None if kafka_config is None else await _archive_facts(settings),
        result_ttl_s=settings.result_ttl_s,
        result_ttl_least_s=settings.result_ttl_least_s,
    )


async def _archive_facts(settings: PlatformSettings) -> ArchiveFacts:
    try:
        state = importlib.import_module("services.audit.state").state
    except ModuleNotFoundError as err:
        return ArchiveFacts(error=f"not looked at, for want of {err.name} (pip install 'aiaas[audit]')")
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return ArchiveFacts(**asdict(await state(_as_the_archiver(settings), _TIMEOUT_S)))
    except AiaasError as err:
        return ArchiveFacts(error=err.message)
    except TimeoutError:
        return ArchiveFacts(error=f"could not be looked at within {_TIMEOUT_S:g} s")


def _as_the_archiver(settings: PlatformSettings) -> PlatformSettings:
    """In a local stack it has a data directory of its own, where its key is."""
    own = settings.data_dir / "state" / "archiver"
    return settings.model_copy(update={"data_dir": own}) if own.is_dir() else settings


def links(settings: PlatformSettings, gateway: str) -> tuple[Link, ...]:
    """The connections that leave a process, as they are configured."""
    servers = tuple(
        server.strip().rpartition(":")[0] or server for server in settings.kafka_bootstrap_servers.split(",")
    )
    redis, http = urlsplit(settings.redis_url), urlsplit(gateway)
    return (
        Link(
            "Kafka",
            servers,
            "SSL" in settings.kafka_security_protocol,
            "give the brokers a TLS listener and set AIAAS_KAFKA_SECURITY_PROTOCOL to SASL_SSL (docs/security.md)",
        ),
        Link(
            "Redis",
            (redis.hostname or "localhost",),
            redis.scheme == "rediss",
            "give it a TLS port and begin AIAAS_REDIS_URL with rediss:// (docs/security.md)",
        ),
        Link(
            "gateway",
            (http.hostname or "localhost",),
            http.scheme == "https",
            "set AIAAS_GATEWAY_TLS_CERTFILE there, or end TLS in a proxy beside it (docs/security.md)",
        ),
    )


async def _kafka_facts(settings: PlatformSettings) -> tuple[dict[str, str], dict[str, TopicFacts]]:
    """The configuration of one broker, and the platform's topics."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        with refusals_in_words():
            await admin.start()
        broker = str((await admin.describe_cluster())["brokers"][0]["node_id"])
        names = [name for name in await admin.list_topics() if settings.topics.is_ours(name)]
        partitions = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics(names)}
        configs = await _configs(
            admin,
            ConfigResource(ConfigResourceType.BROKER, broker),
            *(ConfigResource(ConfigResourceType.TOPIC, name) for name in names),
        )
    finally:
        await admin.close()
    topics = {name: TopicFacts(partitions[name], configs.get(name, {})) for name in names}
    return configs.get(broker, {}), topics


async def _configs(admin: AIOKafkaAdminClient, *resources: ConfigResource) -> dict[str, dict[str, str]]:
    """Effective values by resource name and setting; settings without a value are left out."""
    return {
        name: {entry[0]: entry[1] for entry in entries if entry[1] is not None}
        for response in await admin.describe_configs(list(resources))
        for _code, _message, _type, name, entries in response.resources
    }


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _show(findings: list[Finding]) -> None:
    shown = table("", "what", "seen", "what to do")
    for finding in findings:
        shown.add_row(_MARKS[finding.verdict], *map(escape, (finding.what, finding.seen, finding.advice)))
    console().print(shown)
