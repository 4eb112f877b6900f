"""Certificates that are wrong stop the start; what a gateway does with clients that speak, or don't speak, TLS."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import re
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from services.cli.errors import NotTried
from services.cli.trust import trust
from services.gateway.settings import GatewaySettings
from services.monitor.settings import MonitorSettings
from services.worker.settings import WorkerSettings
from shared import http_server as shared_http_server
from shared import tls
from shared.settings import PlatformSettings, read
from support.certificates import Certificates
from support.http_port import hello, served
from support.ports import free_port

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    made.issue("gateway")
    made.issue("other")
    made.issue("expired", not_before=NOW - 2 * DAY, not_after=NOW - DAY)
    made.issue("early", not_before=NOW + DAY, not_after=NOW + 2 * DAY)
    (made.directory / "garbage.pem").write_text("no certificate")
    (made.directory / "both.pem").write_bytes(
        (made.directory / "gateway-key.pem").read_bytes() + (made.directory / "gateway.pem").read_bytes()
    )
    key = load_pem_private_key((made.directory / "gateway-key.pem").read_bytes(), None)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (made.directory / "encrypted-key.pem").write_bytes(secret)
    return made


# ------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("settings", "variables", "named", "said"),
    [
        (GatewaySettings, {"GATEWAY_TLS_CERTFILE": "none.pem"}, "GATEWAY_TLS_CERTFILE", "No such file"),
        (GatewaySettings, {"GATEWAY_TLS_CERTFILE": "garbage.pem"}, "GATEWAY_TLS_CERTFILE", "PEM form"),
        (GatewaySettings, {"GATEWAY_TLS_CERTFILE": "gateway.pem"}, "GATEWAY_TLS_KEYFILE", "private key"),
        (
            GatewaySettings,
            {"GATEWAY_TLS_CERTFILE": "gateway.pem", "GATEWAY_TLS_KEYFILE": "other-key.pem"},
            "GATEWAY_TLS_KEYFILE",
            "KEY_VALUES_MISMATCH",
        ),
        (
            GatewaySettings,
            {"GATEWAY_TLS_CERTFILE": "gateway.pem", "GATEWAY_TLS_KEYFILE": "none.pem"},
            "GATEWAY_TLS_KEYFILE",
            "No such file",
        ),
        (
            GatewaySettings,
            {"GATEWAY_TLS_CERTFILE": "gateway.pem", "GATEWAY_TLS_KEYFILE": "encrypted-key.pem"},
            "GATEWAY_TLS_KEYFILE",
            "without a passphrase",
        ),
        (
            GatewaySettings,
            {"GATEWAY_TLS_CERTFILE": "expired.pem", "GATEWAY_TLS_KEYFILE": "expired-key.pem"},
            "GATEWAY_TLS_KEYFILE",
            "expired.pem: certificate has expired",
        ),
        (
            MonitorSettings,
            {"MONITOR_TLS_CERTFILE": "early.pem", "MONITOR_TLS_KEYFILE": "early-key.pem"},
            "MONITOR_TLS_KEYFILE",
            "not yet valid",
        ),
        (GatewaySettings, {"GATEWAY_TLS_KEYFILE": "gateway-key.pem"}, "GATEWAY_TLS_KEYFILE", "GATEWAY_TLS_CERTFILE"),
        (GatewaySettings, {"GATEWAY_TLS_CLIENT_CAFILE": "ca.pem"}, "GATEWAY_TLS_CLIENT_CAFILE", "set AIAAS_GATEWAY"),
        (
            PlatformSettings,
            {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": "none.pem"},
            "KAFKA_SSL_CAFILE",
            "No such file",
        ),
        (
            PlatformSettings,
            {
                "KAFKA_SECURITY_PROTOCOL": "SSL",
                "KAFKA_SSL_CERTFILE": "gateway.pem",
                "KAFKA_SSL_KEYFILE": "other-key.pem",
            },
            "KAFKA_SSL_KEYFILE",
            "KEY_VALUES_MISMATCH",
        ),
        (PlatformSettings, {"KAFKA_SSL_CAFILE": "ca.pem"}, "KAFKA_SSL_CAFILE", "nothing is encrypted"),
        (PlatformSettings, {"REDIS_SSL_CAFILE": "ca.pem"}, "REDIS_SSL_CAFILE", "rediss://"),
    ],
)
def test_a_wrong_file_stops_the_start_and_names_its_variable(
    certificates, settings, variables, named, said, monkeypatch, capsys
):
    for name, value in variables.items():
        path = certificates.directory / value
        monkeypatch.setenv(f"AIAAS_{name}", str(path) if value.endswith(".pem") else value)
    with pytest.raises(SystemExit) as stopped:
        read(settings)
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"AIAAS_{named}")
    assert said in line


@pytest.mark.parametrize(("certificate", "key"), [("gateway.pem", "gateway-key.pem"), ("both.pem", None)])
def test_a_certificate_and_its_key_may_lie_in_one_file_or_two(certificates, certificate, key):
    key = key and certificates.directory / key
    settings = GatewaySettings(gateway_tls_certfile=certificates.directory / certificate, gateway_tls_keyfile=key)
    assert settings.gateway_tls_keyfile == key


def test_a_certificate_for_clients_alone_is_right_for_clients(tmp_path):
    """Of a certificate of our own only the dates are judged, not what it is for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "client")])
    about = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), NOW - DAY, NOW + DAY)
    purpose = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = about.add_extension(purpose, critical=True).sign(key, hashes.SHA256())
    path = tmp_path / "client.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    settings = PlatformSettings(kafka_security_protocol="SSL", kafka_ssl_certfile=path)
    assert settings.kafka_ssl_certfile == path


@pytest.mark.parametrize("protocol", ["SASL_SSL", "SASL_PLAINTEXT"])
@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, ["AIAAS_KAFKA_SASL_PASSWORD", "AIAAS_KAFKA_SASL_USERNAME"]),
        ({"AIAAS_KAFKA_SASL_USERNAME": "u"}, ["AIAAS_KAFKA_SASL_PASSWORD"]),
        ({"AIAAS_KAFKA_SASL_USERNAME": "", "AIAAS_KAFKA_SASL_PASSWORD": "geheim"}, ["AIAAS_KAFKA_SASL_USERNAME=''"]),
    ],
)
def test_sasl_needs_a_name_and_a_password(protocol, given, missing, monkeypatch, capsys):
    for name, value in {"AIAAS_KAFKA_SECURITY_PROTOCOL": protocol, **given}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        read(PlatformSettings)
    printed = capsys.readouterr().err
    assert sorted(line.partition(":")[0] for line in printed.splitlines()) == missing
    assert "geheim" not in printed


def test_the_command_line_names_a_file_that_it_can_not_use(monkeypatch, tmp_path):
    monkeypatch.setenv("AIAAS_CA_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(NotTried, match=r"AIAAS_CA_FILE=.*none\.pem can't be used"):
        trust()


def test_with_an_authority_of_ones_own_the_systems_are_not_trusted(certificates):
    assert len(tls.client_context(certificates.authority).get_ca_certs()) == 1
    assert tls.client_context().verify_mode is ssl.CERT_REQUIRED


# ------------------------------------------------------------------ the gateway's port


@asynccontextmanager
async def gateway(**fields):
    """A gateway's server that answers everything with `hi`; yields its port."""
    settings = GatewaySettings(gateway_port=free_port(), drain_timeout_s=0, **fields)
    async with served(hello, settings):
        yield settings.gateway_port


@pytest.fixture
def presented(certificates):
    return {
        "gateway_tls_certfile": certificates.directory / "gateway.pem",
        "gateway_tls_keyfile": certificates.directory / "gateway-key.pem",
    }


async def ask(port, **options):
    async with httpx.AsyncClient(**options, timeout=60) as http:
        return (await http.get(f"https://127.0.0.1:{port}/")).text


async def test_https_answers_who_trusts_it(presented, certificates):
    async with gateway(**presented) as port:
        assert await ask(port, verify=tls.client_context(certificates.authority)) == "hi"
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            await ask(port)


async def test_only_clients_with_a_certificate_get_in_where_it_is_asked_for(presented, certificates, tmp_path):
    stranger, key = Certificates(tmp_path).issue("stranger")
    async with gateway(**presented, gateway_tls_client_cafile=certificates.authority) as port:
        known = tls.client_context(
            certificates.authority, certificates.directory / "other.pem", certificates.directory / "other-key.pem"
        )
        assert await ask(port, verify=known) == "hi"
        for unknown in ((), (stranger, key)):
            with pytest.raises(httpx.TransportError):
                await ask(port, verify=tls.client_context(certificates.authority, *unknown))


async def test_old_protocols_are_refused(presented, certificates):
    old = tls.client_context(certificates.authority)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with gateway(**presented) as port:
        with pytest.raises(httpx.ConnectError):
            await ask(port, verify=old)


async def test_plain_http_on_the_tls_port_is_closed_without_a_trace(presented, certificates, caplog):
    async with gateway(**presented) as port:
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"HTTP" not in await asyncio.wait_for(until_closed(reader), 30)
            writer.close()
        assert await ask(port, verify=tls.client_context(certificates.authority)) == "hi"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def until_closed(reader):
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def test_tls_on_the_plain_port_fails_cleanly(caplog):
    async with gateway() as port:
        with pytest.raises(httpx.ConnectError):
            await ask(port)
    assert not any(record.exc_info for record in caplog.records)


async def test_a_handshake_that_does_not_come_closes_the_connection(presented, monkeypatch, caplog):
    monkeypatch.setattr(shared_http_server, "_TLS_HANDSHAKE_TIMEOUT_S", 0.2)
    async with gateway(**presented) as port:
        for begun in (b"", b"\x16\x03\x01\x02\x00\x01"):  # the head of a ClientHello
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begun)
            assert await asyncio.wait_for(until_closed(reader), 30) == b""
            writer.close()
    assert not any(record.exc_info for record in caplog.records)


# ------------------------------------------------------------------ the page


@pytest.mark.parametrize("variable", sorted(set(re.findall(r"\bAIAAS_([A-Z_]+[A-Z])\b", PAGE))))
def test_the_variables_of_the_page_exist(variable):
    settings = (GatewaySettings, MonitorSettings, WorkerSettings)
    of_clients = {"API_KEY", "CA_FILE", "CLIENT_CERT_FILE", "CLIENT_KEY_FILE"}
    assert variable in of_clients or any(variable.lower() in each.model_fields for each in settings)
