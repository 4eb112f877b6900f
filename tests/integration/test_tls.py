"""Every link over TLS, with passwords: an Apache Kafka and a Redis set up as `docs/security.md` says.

Certificates are made here. One Kafka serves all mechanisms; the whole platform runs once over it.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
import uuid
from contextlib import contextmanager
from itertools import count

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from aiokafka import AIOKafkaProducer
from aiokafka.errors import TopicAuthorizationFailedError
from prometheus_client.parser import text_string_to_metric_families

from services.cli import checks, doctor
from services.cli.local import standard_services
from services.gateway.settings import GatewaySettings
from shared import broker, codec, kafka, metric_events, replies, topics
from shared.dead_letters import DeadLetters
from shared.errors import RepliesUnavailable
from shared.replies import Result
from shared.settings import PlatformSettings
from shared.telemetry import Telemetry
from support import onnx_models
from support.certificates import Certificates
from support.local import local_stack
from support.ports import free_port
from support.processes import service
from support.secure_servers import PASSWORD, UPSTREAM_PASSWORD, redis_with_tls, secure_servers
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

_NUMBERS = count(1)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    binary = redis_with_tls()
    if binary is None:
        pytest.skip("no Redis with TLS on this machine (the bundled Valkey has none): install redis-tools")
    if os.environ.get("AIAAS_LOCAL_KAFKA") == "embedded":
        pytest.skip("the embedded broker has no TLS: needs Apache Kafka")
    with secure_servers(tmp_path_factory.mktemp("tls"), binary) as running:
        yield running


def prefix():
    return f"aiaas.t{next(_NUMBERS)}-"  # what the page's ACLs let the platform have


async def metrics_arrive(settings):
    """An event through a producer and a consumer of aiokafka's, and through the FastStream broker."""
    await kafka.ensure_topics(settings)
    topic = settings.topics.name(topics.METRICS)
    heard = asyncio.Queue()
    async with (
        kafka.started(lambda: kafka.producer(settings), "test") as producer,
        kafka.started(lambda: kafka.consumer(settings, topic), "test") as consumer,
    ):
        telemetry = Telemetry(settings, "test", producer)
        sent = telemetry.event(metric_events.HttpAnswered, statuses={200: 1}, in_flight=0)
        await telemetry.publish([sent])
        record = await asyncio.wait_for(consumer.getone(), 15)
        assert codec.decode_event(metric_events.HttpAnswered, record.value) == sent

        subscribed = broker.build(settings)
        broker.subscriber(subscribed, settings, topics.METRICS, "test")(heard.put)
        async with broker.running(subscribed, DeadLetters(settings, producer), broker.Done()):
            assert await asyncio.wait_for(heard.get(), 15) == sent


# ------------------------------------------------------------------ Kafka


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_kafka_with_a_password_over_tls(servers, mechanism):
    await metrics_arrive(servers.settings(topic_prefix=prefix(), kafka_sasl_mechanism=mechanism))


async def test_kafka_with_a_certificate_instead_of_a_password(servers):
    await metrics_arrive(by_certificate(servers, topic_prefix=prefix()))


async def test_kafka_lets_nobody_in_without_a_certificate_where_it_asks_for_one(servers):
    nameless = by_certificate(servers, kafka_ssl_certfile=None, kafka_ssl_keyfile=None)
    assert "Unable connect" in await refusal(nameless)


def by_certificate(servers, **fields):
    own = {name: servers.certificates.directory / f"aiaas{end}.pem" for name, end in (("cert", ""), ("key", "-key"))}
    return PlatformSettings(
        **{
            "kafka_bootstrap_servers": servers.by_certificate,
            "kafka_security_protocol": "SSL",
            "kafka_ssl_cafile": servers.certificates.authority,
            **{f"kafka_ssl_{name}file": path for name, path in own.items()},
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kafka_ssl_cafile": None}, "certificate verify failed"),
        ({"kafka_sasl_password": "geheim"}, "SaslAuthenticationFailed"),
        ({"kafka_sasl_mechanism": "PLAIN", "kafka_sasl_password": "geheim"}, "SaslAuthenticationFailed"),
        ({"kafka_security_protocol": "SASL_PLAINTEXT", "kafka_ssl_cafile": None}, "Unable connect"),
    ],
    ids=["who is not trusted", "a wrong password", "a wrong password in plain", "no TLS on a TLS port"],
)
async def test_kafka_says_why_it_is_not_reached(servers, wrong, said):
    message = await refusal(servers.settings(**wrong))
    assert said in message
    assert "geheim" not in message


async def refusal(settings):
    """What `aiaas doctor` says of Kafka; a service's log line has the same words."""
    facts = await doctor.gather(settings)
    assert facts.kafka is None
    return facts.kafka_error


async def test_a_service_with_a_wrong_password_waits_says_so_and_starts_when_it_is_right(servers, tmp_path):
    name = f"late-{uuid.uuid4().hex[:8]}"
    settings = servers.settings(
        topic_prefix=prefix(),
        kafka_sasl_username=name,
        kafka_sasl_password="geheim-geheim",
        data_dir=tmp_path,
        artifact_store_url=tmp_path.as_uri(),
        health_port=free_port(),
    )
    log_path = tmp_path / "worker.log"
    with log_path.open("wb") as log, service("worker", settings, log) as worker:
        said = await eventually(lambda: refused(log_path), within_s=40, what="two lines about the password")
        assert worker.poll() is None, "it waits"
        assert all("creating topics" in line and "127.0.0.1" in line for line in said)
        servers.add_user(name, "geheim-geheim")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.health_port}") as health:

            async def ready():
                return (await health.get("/ready")).status_code == 200

            await eventually(lambda: quietly(ready), within_s=60, what="the worker ready")
    printed = log_path.read_text()
    assert "geheim" not in printed
    assert "Traceback" not in printed
    assert len(printed.splitlines()) < 40, "waiting does not flood the log"


def refused(log_path):
    lines = [line for line in log_path.read_text().splitlines() if '"waiting for kafka"' in line]
    assert all("SaslAuthenticationFailed" in line for line in lines), lines
    return lines if len(lines) >= 2 else None


async def quietly(ask):
    try:
        return await ask()
    except httpx.TransportError:
        return False


async def test_upstream_may_produce_requests_and_nothing_else(servers):
    platform = servers.settings()
    await kafka.ensure_topics(platform)
    await kafka.ensure_topics(platform, "m")
    upstream = servers.settings(kafka_sasl_username="upstream", kafka_sasl_password=UPSTREAM_PASSWORD)
    async with kafka.started(lambda: AIOKafkaProducer(**kafka.client_options(upstream)), "test") as producer:
        await producer.send_and_wait(upstream.topics.requests("m"), b"{}")
        for topic in (topics.OUTCOMES, topics.MODELS, topics.WORKERS):
            with pytest.raises(TopicAuthorizationFailedError):
                await producer.send_and_wait(upstream.topics.name(topic), b"forged")


# ------------------------------------------------------------------ Redis


async def test_redis_with_a_password_over_tls(servers):
    async with replies.connect(servers.settings()) as there:
        [winner] = await there.put([Result(id=uuid.uuid4().hex, status="cancelled", model_name="m")])
        assert winner.status == "cancelled"


async def test_redis_is_shown_the_certificate_that_is_configured(servers, tmp_path):
    settings = by_certificate(servers, kafka_security_protocol="SSL")
    ours = {"redis_ssl_certfile": settings.kafka_ssl_certfile, "redis_ssl_keyfile": settings.kafka_ssl_keyfile}
    async with replies.connect(servers.settings(**ours)) as there:
        await there.ping()
    stranger, key = Certificates(tmp_path).issue("aiaas")
    with pytest.raises(RepliesUnavailable):
        async with replies.connect(servers.settings(redis_ssl_certfile=stranger, redis_ssl_keyfile=key)) as there:
            await there.ping()


async def test_a_gateway_with_a_wrong_redis_password_says_so_and_is_not_ready(servers, tmp_path):
    url = servers.settings().redis_url.replace("change-me-redis", "geheim")
    fields = servers.fields(redis_url=url, topic_prefix=prefix(), gateway_port=free_port(), data_dir=tmp_path)
    settings = GatewaySettings(**{**fields, "artifact_store_url": tmp_path.as_uri(), "api_keys": "{}"})
    log_path = tmp_path / "gateway.log"
    with log_path.open("wb") as log, service("gateway", settings, log):
        said = await eventually(
            lambda: [line for line in log_path.read_text().splitlines() if "waiting for redis" in line], within_s=40
        )
        trusted = ssl.create_default_context(cafile=servers.certificates.authority)
        url = f"https://127.0.0.1:{settings.gateway_port}/v2/health/ready"
        assert (await asyncio.to_thread(httpx.get, url, verify=trusted)).status_code == 503
    assert "invalid username-password pair" in said[0]
    assert "geheim" not in log_path.read_text()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda url: {"redis_ssl_cafile": None}, "certificate verify failed"),  # noqa: ARG005 - the same shape as below
        (lambda url: {"redis_url": url.replace("change-me-redis", "geheim")}, "invalid username-password pair"),
        (lambda url: {"redis_url": url.replace("rediss", "redis"), "redis_ssl_cafile": None}, "Redis did not answer"),
    ],
    ids=["who is not trusted", "a wrong password", "no TLS on a TLS port"],
)
async def test_redis_says_why_it_is_not_reached(servers, wrong, said):
    settings = servers.settings(**wrong(servers.settings().redis_url))
    with pytest.raises(RepliesUnavailable) as refused:
        async with replies.connect(settings) as there:
            await there.ping()
    assert said in refused.value.message
    assert "geheim" not in refused.value.message


# ------------------------------------------------------------------ the whole platform


@pytest.fixture(scope="module")
def platform(servers, tmp_path_factory):
    fields = servers.fields(topic_prefix="aiaas.whole-")
    given = {name: value for name, value in fields.items() if name.startswith(("kafka_", "redis_"))}
    env = {f"AIAAS_{name.upper()}": str(value) for name, value in fields.items()}
    directory = tmp_path_factory.mktemp("platform")
    with local_stack(directory, standard_services(workers=1), service_env=env, **given) as running:
        yield running


@pytest.fixture
def trusted(servers):
    return ssl.create_default_context(cafile=servers.certificates.authority)


@contextmanager
def door(url, trusted):
    with httpx.Client(base_url=url, verify=trusted, headers={"x-api-key": "change-me-api-key"}) as http:
        yield http


async def test_from_an_upload_to_an_answer_over_tls_alone(platform, trusted, servers):
    model = onnx_models.linear()
    with door(platform.gateway_url, trusted) as http:
        path = "/v2/repository/models/linear/versions"
        uploaded = http.post(path, content=model.content).raise_for_status().json()

        def ready():
            state = http.get(uploaded["status_url"]).json()["state"]
            assert state != "rejected"
            return state == "ready" and http.get("/v2/models/linear/ready").status_code == 200

        await eventually(ready, within_s=90, what="the model ready")
    x = np.ones((2, 4), np.float32)
    answer = await asyncio.to_thread(ask_triton, platform.gateway_url, servers.certificates.authority, x)
    assert answer.shape[0] == 2
    assert np.isfinite(answer).all()


def ask_triton(url, authority, x):
    """The first output, through Triton's own client over TLS."""
    client = triton.InferenceServerClient(
        url.removeprefix("https://"),
        ssl=True,
        ssl_options={"ca_certs": str(authority)},
    )
    [spec] = client.get_model_metadata("linear", headers={"x-api-key": "change-me-api-key"})["inputs"]
    given = triton.InferInput(spec["name"], list(x.shape), spec["datatype"])
    given.set_data_from_numpy(x)
    result = client.infer("linear", [given], headers={"x-api-key": "change-me-api-key"})
    [output] = result.get_response()["outputs"]
    client.close()
    return result.as_numpy(output["name"])


def test_the_monitor_over_tls(platform, trusted):
    with door(platform.monitor_url, trusted) as http:
        families = list(text_string_to_metric_families(http.get("/metrics").raise_for_status().text))
    assert families


def test_who_does_not_know_the_authority_does_not_believe_the_gateway(platform):
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{platform.gateway_url}/v2")


def test_the_command_line_over_tls(platform, servers):
    def models(**variables):
        return subprocess.run(
            [sys.executable, "-m", "services.cli", "models", "list", "--json", "--url", platform.gateway_url],
            env={**os.environ, "AIAAS_API_KEY": "change-me-api-key", **variables},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    believing = models(AIAAS_CA_FILE=str(servers.certificates.authority))
    assert believing.returncode == 0, believing.stderr
    assert isinstance(json.loads(believing.stdout), list)
    doubting = models()
    assert doubting.returncode == 2
    assert "AIAAS_CA_FILE" in doubting.stderr
    assert "Traceback" not in doubting.stderr


def test_plain_http_on_the_tls_port_gets_no_answer_and_leaves_no_trace(platform):
    url = platform.gateway_url.replace("https", "http")
    for _ in range(5):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/v2/health/live", timeout=5)
    assert "Traceback" not in platform.child("gateway").log


async def test_doctor_finds_every_link_encrypted(platform, servers):
    settings = servers.settings(topic_prefix="aiaas.whole-")
    facts = await doctor.gather(settings)
    assert (facts.kafka_error, facts.redis_error) == ("", "")
    assert (
        doctor.links(settings, platform.gateway_url)
        == facts.links[:2] + doctor.links(settings, platform.gateway_url)[2:]
    )
    found = {finding.what: finding for finding in checks.examine(facts, settings.topics)}
    assert found["Kafka link"].seen == found["Redis link"].seen == "encrypted to 127.0.0.1"
    assert found["auto.create.topics.enable"].verdict == "ok"


def test_no_log_has_a_password(platform):
    for name in ("gateway", "worker-1", "optimizer", "monitor", "archiver"):
        printed = platform.child(name).log
        assert PASSWORD not in printed
        assert "change-me-redis" not in printed
        assert "change-me-api-key" not in printed
