"""What is deployed agrees with what is built: compose.yaml, Dockerfile, constraints, extras and settings."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from shared.topics import REQUESTS

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SETTINGS = {
    "gateway": "GatewaySettings",
    "worker": "WorkerSettings",
    "worker-gpu": "WorkerSettings",
    "optimizer": "OptimizerSettings",
    "monitor": "MonitorSettings",
    "archiver": "AuditSettings",
}
PACKAGES = {"worker-gpu": "worker", "archiver": "audit"}
"""Where a service does not lie in the package of its name."""


def test_compose_runs_every_service_beside_kafka_and_redis():
    assert set(COMPOSE["services"]) == {"kafka", "redis", "prometheus", "grafana", *SETTINGS}
    assert COMPOSE["services"]["worker-gpu"]["profiles"] == ["gpu"]
    for name, service in COMPOSE["services"].items():
        assert "healthcheck" in service, name
        assert service["restart"] == "unless-stopped", name
        volumes = [volume.split(":")[0] for volume in service["volumes"]]
        named = {volume for volume in volumes if not volume.startswith("./")}
        assert named <= set(COMPOSE["volumes"]), name


def test_compose_uses_words_that_the_specification_has():
    # https://github.com/compose-spec/compose-spec/blob/main/05-services.md, of which these are the ones that we use.
    words = {"image", "build", "profiles", "restart", "command", "environment", "volumes", "ports", "depends_on"}
    words |= {"healthcheck", "deploy", "init", "cap_drop", "security_opt", "stop_grace_period"}
    of_checks = {"test", "interval", "timeout", "retries", "start_period", "start_interval"}
    assert {key for key in COMPOSE if not key.startswith("x-")} <= {"name", "services", "volumes"}
    for name, service in COMPOSE["services"].items():
        assert service.keys() <= words, name
        assert service["healthcheck"].keys() <= of_checks, name


@pytest.mark.parametrize("service", SETTINGS)
def test_variables_of_a_container_are_settings_of_its_service(service):
    package = PACKAGES.get(service, service)
    fields = getattr(import_module(f"services.{package}.settings"), SETTINGS[service]).model_fields
    stage = DOCKERFILE[DOCKERFILE.index(f"AS {service}\n") :].split("\nFROM ")[0]
    in_image = re.findall(r"(AIAAS_[A-Z_]+)=", DOCKERFILE.split("\nFROM packages")[0] + stage)
    for variable in [*COMPOSE["services"][service]["environment"], *in_image]:
        assert variable.removeprefix("AIAAS_").lower() in fields, variable


@pytest.mark.parametrize("service", SETTINGS)
def test_an_image_holds_its_own_extra_and_its_own_code(service):
    package = PACKAGES.get(service, service)
    assert COMPOSE["services"][service]["build"]["target"] == service
    install = DOCKERFILE[DOCKERFILE.index(f"AS {service}-packages\n") :].splitlines()[1]
    extras = re.findall(r"--extra (\S+)", install)
    assert "-c constraints.txt" in install
    assert package in extras
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    stage = DOCKERFILE[DOCKERFILE.index(f"AS {service}\n") :].split("\nFROM ")[0]
    assert f"COPY services/{package} services/{package}\n" in stage
    assert f'CMD ["python", "-m", "services.{package}"]' in stage
    assert "USER aiaas" in stage
    assert "HEALTHCHECK" in stage


def test_compose_and_the_local_stack_run_the_same_kafka():
    pom = ET.parse(ROOT / "services/cli/kafka/pom.xml")
    version = pom.findtext(".//{*}kafka.version")
    assert COMPOSE["services"]["kafka"]["image"] == f"apache/kafka:{version}"


def test_kafka_keeps_offsets_longer_than_requests():
    environment = COMPOSE["services"]["kafka"]["environment"]
    assert environment["KAFKA_OFFSETS_RETENTION_MINUTES"] * 60_000 > int(REQUESTS.config["retention.ms"])
    assert environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_redis_is_durable_and_forgets_nothing():
    command = COMPOSE["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"


def test_constraints_pin_every_dependency_exactly():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {re.match(r"([a-z0-9-]+)==[^ ]+( ; .+)?$", line)[1] for line in lines}
    declared = [
        *PROJECT["dependencies"],
        *(need for extra in PROJECT["optional-dependencies"].values() for need in extra),
    ]
    names = {re.match(r"[A-Za-z0-9-]+", need)[0] for need in declared} - {"aiaas"}
    assert names <= pins


def test_what_the_images_are_built_from_is_in_the_build_context():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert Path(source).parts[0] in allowed, source
