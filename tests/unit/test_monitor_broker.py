"""The FastStream broker gets into Kafka as every other client does."""

from __future__ import annotations

import pytest
from faststream.kafka.security import parse_security

from shared import broker
from shared.kafka import client_options
from shared.settings import PlatformSettings


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_security_is_that_of_the_platform(protocol, mechanism):
    options = client_options(
        PlatformSettings(
            kafka_security_protocol=protocol,
            kafka_sasl_mechanism=mechanism,
            kafka_sasl_username="aiaas",
            kafka_sasl_password="secret",
        )
    )
    same = {name: value for name, value in options.items() if name not in {"bootstrap_servers", "client_id"}}
    parsed = {"security_protocol": "PLAINTEXT", **parse_security(broker._security(options))}
    assert {name: value for name, value in parsed.items() if value is not None} == same
