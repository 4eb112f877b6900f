"""A Kafka and a Redis as `docs/security.md` sets them up: TLS, passwords, ACLs, and certificates made on the spot.

The page's own blocks are what runs here; paths, hosts and ports alone are exchanged. Kafka's listeners take more than
the page says (all three SASL mechanisms), which is added behind.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from services.cli.local import LocalStackSettings, leash
from services.cli.local.kafka_runtime import DATA, runtime
from services.cli.local.probes import kafka as kafka_probe
from services.cli.local.probes import redis as redis_probe
from services.cli.local.processes import Processes
from shared.settings import PlatformSettings
from support.certificates import HOST, Certificates
from support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.cli.local.probes import Probe

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
USER, PASSWORD = "aiaas", "change-me-kafka"
UPSTREAM_PASSWORD = "change-me-upstream"
_READY_S = 60.0
_MORE_MECHANISMS = f"""
listener.name.clients.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.clients.scram-sha-256.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.clients.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";
"""
_MORE_CLIENTS = "tls-auth-clients optional\n"


class SecureServers:
    """Both servers, ready. `environment` is the page's for the platform."""

    def __init__(self, certificates: Certificates, kafka_ports: dict[str, int], redis_port: int) -> None:
        self.certificates = certificates
        self.by_certificate = f"{HOST}:{kafka_ports['CERTIFICATES']}"
        here = {
            "kafka.example.com:9094": f"{HOST}:{kafka_ports['CLIENTS']}",
            "redis.example.com:6380": f"{HOST}:{redis_port}",
            "/etc/aiaas/tls": str(certificates.directory),
        }
        page = (line.partition("=") for line in exchanged(block("sh", "AIAAS_KAFKA_"), here).splitlines())
        self.environment = {name: value for name, _, value in page if not name.endswith("_HOST")}

    def fields(self, **overrides: Any) -> dict[str, Any]:
        """The same as fields of settings, of every kind of service."""
        return {**{name.removeprefix("AIAAS_").lower(): value for name, value in self.environment.items()}, **overrides}

    def settings(self, **overrides: Any) -> PlatformSettings:
        return PlatformSettings(**self.fields(**overrides))

    def admin(self) -> AdminClient:
        """The brokers' own user, who may do everything."""
        return AdminClient(
            {
                "bootstrap.servers": self.by_certificate,
                "security.protocol": "SSL",
                "ssl.ca.location": str(self.certificates.authority),
                "ssl.certificate.location": str(self.certificates.directory / "broker.pem"),
                "ssl.key.location": str(self.certificates.directory / "broker-key.pem"),
            }
        )

    def add_user(self, name: str, password: str) -> None:
        """A user with SCRAM-SHA-512, and the platform's rights."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        upsertion = UserScramCredentialUpsertion(name, info, password.encode())
        admin = self.admin()  # which has to live for as long as it works
        for done in admin.alter_user_scram_credentials([upsertion]).values():
            done.result(10)
        self._allow(binding for binding in _acls(name) if binding.principal == f"User:{name}")

    def allow_as_on_the_page(self) -> None:
        self._allow(_acls(USER))

    def _allow(self, bindings: Any) -> None:
        admin = self.admin()
        for done in admin.create_acls(list(bindings)).values():
            done.result(10)


@contextmanager
def secure_servers(directory: Path, redis_binary: str) -> Iterator[SecureServers]:
    certificates = Certificates(directory)
    for name in ("broker", "redis", "gateway", "monitor", USER):
        certificates.issue(name)
    _for_kafka(directory / "broker.pem", directory / "broker-key.pem", directory / "kafka" / "broker.pem")
    (directory / "kafka" / "ca.pem").write_bytes(certificates.authority.read_bytes())
    ports = {name: free_port() for name in ("CLIENTS", "CERTIFICATES", "CONTROLLER")}
    servers = SecureServers(certificates, ports, free_port())
    with ExitStack() as running:
        redis_argv = _redis(directory, redis_binary, servers.settings().redis_url)
        running.enter_context(_process(redis_argv, directory / "redis.log", redis_probe(servers.settings())))
        kafka_argv = _kafka(directory / "kafka", ports)
        running.enter_context(_process(kafka_argv, directory / "kafka.log", kafka_probe(servers.settings())))
        servers.allow_as_on_the_page()
        yield servers


def redis_with_tls() -> str | None:
    """A Redis that has TLS, which the bundled Valkey has not.

    Debian has it twice: `redis-server` is a link to `redis-check-rdb`, which comes without a service that starts.
    """
    return shutil.which("redis-server") or shutil.which("redis-check-rdb")


def block(language: str, containing: str) -> str:
    """The one block of the page in this language that has these words."""
    [found] = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if containing in text]
    return str(found)


def exchanged(text: str, here: dict[str, str]) -> str:
    for there, ours in here.items():
        text = text.replace(there, ours)
    return text


def _kafka(directory: Path, ports: dict[str, int]) -> tuple[str, ...]:
    """The command, after the directory was formatted with its users."""
    with Processes() as processes:
        jars = asyncio.run(runtime(LocalStackSettings().cache_dir, processes, print))
    values = {"host": HOST, "port": 0, "controller_port": ports["CONTROLLER"], "log_dir": directory / "log"}
    usual = Template((DATA / "server.properties").read_text()).substitute(values)
    here = {
        "0.0.0.0:9094": f"{HOST}:{ports['CLIENTS']}",
        "0.0.0.0:9095": f"{HOST}:{ports['CERTIFICATES']}",
        "0.0.0.0:9093": f"{HOST}:{ports['CONTROLLER']}",
        "kafka.example.com:9094": f"{HOST}:{ports['CLIENTS']}",
        "kafka.example.com:9095": f"{HOST}:{ports['CERTIFICATES']}",
        "/etc/kafka/tls": str(directory),
    }
    properties = directory / "server.properties"
    properties.write_text(usual + exchanged(block("properties", "listeners="), here) + _MORE_MECHANISMS)
    users = [
        f"SCRAM-SHA-256=[name={USER},password={PASSWORD}]",
        re.findall(r"--add-scram '(.+?)'", PAGE)[0],
        f"SCRAM-SHA-512=[name=upstream,password={UPSTREAM_PASSWORD}]",
    ]
    scram = [word for user in users for word in ("--add-scram", user)]
    tool = ("kafka.tools.StorageTool", "format", "-t", "aiaasAiaasAiaasAiaasAw", "-c", str(properties))
    subprocess.run(jars.argv(*tool, *scram), check=True, stdout=subprocess.DEVNULL, timeout=60)
    (directory / "tmp").mkdir()
    return jars.argv("kafka.Kafka", str(properties), jvm_options=(f"-Djava.io.tmpdir={directory / 'tmp'}", "-Xmx320m"))


def _for_kafka(certificate: Path, key: Path, both: Path) -> None:
    """Key and certificate in one file, the key as PKCS #8, which is all that Kafka reads."""
    both.parent.mkdir()
    private = load_pem_private_key(key.read_bytes(), None)
    both.write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.read_bytes()
    )


def _redis(directory: Path, binary: str, url: str) -> tuple[str, ...]:
    port = url.rpartition(":")[2].partition("/")[0]
    here = {"tls-port 6380": f"tls-port {port}", "/etc/redis/tls": str(directory)}
    configuration = directory / "redis.conf"
    configuration.write_text(
        exchanged(block("conf", "tls-port"), here) + f"bind {HOST}\ndir {directory}\n{_MORE_CLIENTS}"
    )
    named = directory / "redis-server"  # it goes by the name that it is called by
    named.symlink_to(binary)
    return str(named), str(configuration)


@contextmanager
def _process(argv: tuple[str, ...], log: Path, probe: Probe) -> Iterator[None]:
    """A server from ready to stopped; it dies with us, whatever becomes of us."""
    tied = (sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *argv)
    with log.open("wb") as output:
        process = subprocess.Popen(tied, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline_s = time.monotonic() + _READY_S
        while (why_not := asyncio.run(probe())) is not None:  # type: ignore[arg-type]  # a coroutine
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, f"{why_not}\n{log.read_text()}"
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()


def _acls(platform_user: str) -> list[AclBinding]:
    """The page's `kafka-acls.sh` commands, with the platform under another name if need be."""
    commands = block("sh", "kafka-acls.sh").replace(f"User:{USER}", f"User:{platform_user}").splitlines()
    return [binding for command in commands for binding in _acl(shlex.split(command)[1:])]


def _acl(words: list[str]) -> Iterator[AclBinding]:
    options = argparse.ArgumentParser()
    options.add_argument("--add", action="store_true", required=True)
    options.add_argument("--cluster", action="store_const", const="kafka-cluster")
    for name in ("--allow-principal", "--operation", "--topic", "--group"):
        options.add_argument(name)
    options.add_argument("--resource-pattern-type", default="literal")
    asked = options.parse_args(words)
    resources = {"TOPIC": asked.topic, "GROUP": asked.group, "BROKER": asked.cluster}
    for kind, name in resources.items():
        if name is not None:
            yield AclBinding(
                ResourceType[kind],
                name,
                ResourcePatternType[asked.resource_pattern_type.upper()],
                asked.allow_principal,
                "*",
                AclOperation[re.sub(r"(?<!^)(?=[A-Z])", "_", asked.operation).upper()],
                AclPermissionType.ALLOW,
            )
