"""Configuration: a wrong variable stops the start and says which one, and to what it was set."""

from __future__ import annotations

import pytest
from pydantic import Field

from shared.settings import PlatformSettings, read


class SomeSettings(PlatformSettings):
    api_key: str = Field(default="", repr=False, max_length=3)
    limit: int = Field(default=1, ge=1)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AIAAS_LIMIT", "many"),
        ("AIAAS_LIMIT", "0"),
        ("AIAAS_INSTANCE", "a b"),
        ("AIAAS_INSTANCE", "a\n"),
        ("AIAAS_TOPIC_PREFIX", "a/b"),
        ("AIAAS_TOPIC_PREFIX", ""),
        ("AIAAS_HEALTH_PORT", "65536"),
        ("AIAAS_KAFKA_SECURITY_PROTOCOL", "NONE"),
        ("AIAAS_ARTIFACT_STORE_URL", "/var/lib"),
        ("AIAAS_REDIS_TIMEOUT_S", "0"),
        ("AIAAS_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_is_named(variable, value, monkeypatch, capsys):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as stopped:
        read(SomeSettings)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"{variable}={value!r}: ")


def test_every_wrong_variable_has_its_line(monkeypatch, capsys):
    monkeypatch.setenv("AIAAS_LIMIT", "many")
    monkeypatch.setenv("AIAAS_LOG_LEVEL", "loud")
    with pytest.raises(SystemExit):
        read(SomeSettings)
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.partition("=")[0] for line in lines) == ["AIAAS_LIMIT", "AIAAS_LOG_LEVEL"]


def test_a_wrong_secret_is_named_and_not_shown(monkeypatch, capsys):
    monkeypatch.setenv("AIAAS_API_KEY", "geheim")
    with pytest.raises(SystemExit):
        read(SomeSettings)
    error = capsys.readouterr().err
    assert error.startswith("AIAAS_API_KEY: ")
    assert "geheim" not in error


def test_secrets_are_not_in_what_is_logged():
    settings = PlatformSettings(kafka_sasl_password="geheim", redis_url="redis://:geheim@redis/0")
    assert "geheim" not in repr(settings)
    assert "geheim" not in str(settings)


def test_variables_are_read_and_unknown_ones_are_not_ours(monkeypatch):
    monkeypatch.setenv("AIAAS_TOPIC_PREFIX", "prod.")
    monkeypatch.setenv("AIAAS_NO_SUCH_SETTING", "1")
    settings = read(SomeSettings)
    assert settings.topics.requests("m") == "prod.requests.m"


def test_each_start_is_an_incarnation_of_its_own():
    first, second = PlatformSettings(instance="w"), PlatformSettings(instance="w")
    assert first.owner.startswith("w/")
    assert first.owner != second.owner
