"""The gateway's pure parts: settings, keys, bounds, the table of statuses, readiness, views, deadlines."""

from __future__ import annotations

import base64
import hashlib
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.gateway import readiness, views
from services.gateway.answers import STATUS_OF_CODE, error, of_result, state_of
from services.gateway.bodies import content_sha256
from services.gateway.infer import timeout_of
from services.gateway.paths import requests_url, version_of, version_url
from services.gateway.request_state import RequestState
from services.gateway.routes_models import VERSION
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api_keys import tenant_of
from shared.errors import (
    InvalidInput,
    ModelNotReady,
    ModelRetired,
    Unauthorized,
    UnknownModel,
    UnknownVersion,
)
from shared.events import (
    FormatRecognised,
    MachineClass,
    Measurements,
    ModelReady,
    OptimizationClaimed,
    TrafficSplit,
    VariantReady,
)
from shared.events import ModelRetired as Retired
from shared.heartbeat_events import Heartbeat, LoadedModel
from shared.oip import InferenceRequest
from shared.results import Result
from shared.settings import read
from shared.tensors import Tensor
from support.facts import OWNER, SIGNATURE, artifact, folded, made_ready, uploaded

KEYS = {"key-of-alice": "alice", "key-of-bob": "bob"}


def test_the_version_is_the_project_s():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == VERSION


# ------------------------------------------------------------------ settings and keys


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_without_keys_only_loopback_is_bound(host, monkeypatch, capsys):
    monkeypatch.setenv("AIAAS_GATEWAY_HOST", host)
    with pytest.raises(SystemExit):
        read(GatewaySettings)
    told = capsys.readouterr().err
    assert told.startswith(f"AIAAS_GATEWAY_HOST={host!r}")
    assert "AIAAS_API_KEYS" in told
    monkeypatch.setenv("AIAAS_API_KEYS", '{"key-of-alice": "alice"}')
    assert read(GatewaySettings).gateway_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host):
    assert GatewaySettings(gateway_host=host).api_keys == {}
    assert GatewaySettings(gateway_host=host, api_keys="").api_keys == {}


@pytest.mark.parametrize(
    "keys", ["secret-key", '["secret-key"]', '{"secret-key": "no tenant!"}', '{"secret": "alice"}']
)
def test_wrong_keys_are_told_without_the_keys(keys, monkeypatch, capsys):
    monkeypatch.setenv("AIAAS_API_KEYS", keys)
    with pytest.raises(SystemExit):
        read(GatewaySettings)
    told = capsys.readouterr().err
    assert told.startswith("AIAAS_API_KEYS: ")
    assert "secret" not in told
    assert "secret" not in repr(GatewaySettings(api_keys='{"secret-key": "alice"}'))


def test_a_key_is_its_tenant():
    assert tenant_of({"authorization": "Bearer key-of-alice"}, KEYS) == "alice"
    assert tenant_of({"authorization": "bearer key-of-bob "}, KEYS) == "bob"
    assert tenant_of({"x-api-key": "key-of-bob"}, KEYS) == "bob"
    assert tenant_of({}, {}) is None


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-api-key": ""}, {"x-api-key": "key-of-alic"}, {"authorization": "Basic key-of-alice"}, {"x-api-key": "é"}],
)
def test_no_key_no_tenant(headers):
    with pytest.raises(Unauthorized):
        tenant_of(headers, KEYS)


# ------------------------------------------------------------------ errors as HTTP


def own_subclasses(kind):
    return [sub for sub in kind.__subclasses__() if sub.__module__ == errors.__name__]


LEAVES = [
    kind
    for kind in vars(errors).values()  # not AiaasError's subclasses: other modules, tests among them, have their own
    if isinstance(kind, type) and issubclass(kind, errors.AiaasError) and not own_subclasses(kind)
]


def test_every_code_has_a_status():
    for kind in LEAVES:
        assert kind.code in STATUS_OF_CODE, kind
        response = error(kind.code, "x")
        assert (response.status_code in {429, 503}) == kind.retriable == ("retry-after" in response.headers), kind
    assert error("something new", "x").status_code == 500


def test_bytes_that_json_cannot_carry_are_told():
    raw = Result(
        id="1",
        status="succeeded",
        model_name="m",
        model_version=1,
        outputs=(Tensor("y", "BYTES", (1,), b"\x01\x00\x00\x00\xff"),),
    )
    with pytest.raises(InvalidInput, match="ask for it in binary"):
        of_result(raw, InferenceRequest(()))
    in_binary = of_result(raw, InferenceRequest((), parameters={"binary_data_output": True}))
    assert in_binary.status_code == 200
    state = state_of("m", "1", RequestState("succeeded", result=raw))
    assert (state["state"], state["result"], state["error"]["code"]) == ("succeeded", None, "invalid_input")


def test_a_failure_without_a_word_still_has_code_and_sentence():
    assert of_result(Result(id="1", status="expired", model_name="m"), InferenceRequest(())).status_code == 504
    cancelled = RequestState("cancelled", result=Result(id="1", status="cancelled", model_name="m"))
    assert state_of("m", "1", cancelled)["error"]["code"] == "cancelled"


# ------------------------------------------------------------------ what a request says


@pytest.mark.parametrize(("timeout_us", "seconds"), [(None, 60), (0, 60), (1_500_000, 1.5), (10**15, 600)])
def test_the_deadline_is_bounded(timeout_us, seconds):
    parameters = {} if timeout_us is None else {"timeout": timeout_us}
    assert timeout_of(InferenceRequest((), parameters=parameters), GatewaySettings()) == seconds


@pytest.mark.parametrize("timeout_us", [-1, 1.5, "1", True])
def test_a_strange_timeout_is_refused(timeout_us):
    with pytest.raises(InvalidInput):
        timeout_of(InferenceRequest((), parameters={"timeout": timeout_us}), GatewaySettings())


def test_content_digest():
    digest = hashlib.sha256(b"x")
    promised = f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert content_sha256({}) is None
    assert content_sha256({"content-digest": promised}) == digest.hexdigest()
    assert content_sha256({"content-digest": f"md5=:AA==:, {promised}"}) == digest.hexdigest()


@pytest.mark.parametrize(
    "promised", ["", "sha-256", "sha-256=", "sha-256=:", "sha-256=::", "sha-256=:AA==:", "md5=:AA==:"]
)
def test_a_content_digest_that_could_not_be_checked_is_refused(promised):
    with pytest.raises(InvalidInput):
        content_sha256({"content-digest": promised})


def test_paths():
    assert version_of(None, "m") is None
    assert version_of("12", "m") == 12
    for text in ("", "x", "-1", "1.0", "1" * 11, "\u0661"):
        with pytest.raises(UnknownVersion):
            version_of(text, "m")
    assert requests_url("m", "a/b c") == "/v2/models/m/requests/a%2Fb%20c"
    assert version_url("m", 3) == "/v2/repository/models/m/versions/3"


# ------------------------------------------------------------------ the registry, seen from outside


def beat(*loaded, service="worker", engines=None):
    models = tuple(
        LoadedModel(model=m, version=v, variant="fp32", artifact_sha256=artifact(f"fp32 {v} 1").sha256, byte_size=1)
        for m, v in loaded
    )
    machine = MachineClass(isa="x", engines=engines or {})
    return Heartbeat(
        instance="w", incarnation="1", service=service, machine=machine, loaded=models, registry_offset=0, interval_s=2
    )


TWO_VERSIONS = (uploaded(), *made_ready(), uploaded(upload_id="u2"), *made_ready(version=2))


def test_ready_is_what_a_live_worker_holds():
    registry = folded(*TWO_VERSIONS)
    readiness.check(registry, [beat(("m", 1))], "m")
    readiness.check(registry, [beat(("m", 1)), beat(("m", 2))], "m", 2)
    for beats, number in [([], None), ([beat(("m", 2))], None), ([beat(("m", 1))], 2), ([beat(("x", 1))], None)]:
        with pytest.raises(ModelNotReady):
            readiness.check(registry, beats, "m", number)
    with pytest.raises(ModelNotReady):
        readiness.check(registry, [beat(("m", 1), service="optimizer")], "m")


def test_a_worker_with_the_engine_is_looked_for():
    attempt = {"model": "m", "version": 1, "attempt": 1, "owner": OWNER}
    variant = {"signature": SIGNATURE, "batch_cap": 1, "measurements": Measurements(), "engine": "torch"}
    registry = folded(
        uploaded(),
        OptimizationClaimed(**attempt),
        FormatRecognised(**attempt, format="torchscript", needs=(), handed_on=False),
        VariantReady(**attempt, variant="fp32", artifact=artifact("fp32 1 1"), **variant),
        ModelReady(**attempt, variant="fp32", reason="torch serves it"),
    )
    version = registry.version("m", 1)
    assert "needs the engine 'torch'" in (readiness.lacks_engine(version, [beat()]) or "")
    with pytest.raises(ModelNotReady, match="which no live worker has"):
        readiness.check(registry, [beat(("x", 1))], "m")
    able = [beat(engines={"torch": "2"})]
    assert readiness.lacks_engine(version, able) is None
    with pytest.raises(ModelNotReady, match="AIAAS_TORCHSCRIPT_TENANTS"):
        readiness.check(registry, able, "m")
    readiness.check(registry, [beat(("m", 1), engines={"torch": "2"})], "m")


def test_ready_with_a_split_needs_every_version_that_takes_traffic():
    registry = folded(*TWO_VERSIONS, TrafficSplit(model="m", weights={1: 1, 2: 1}))
    with pytest.raises(ModelNotReady, match="version 2"):
        readiness.check(registry, [beat(("m", 1))], "m")
    readiness.check(registry, [beat(("m", 1), ("m", 2))], "m")
    registry = folded(*TWO_VERSIONS, TrafficSplit(model="m", weights={1: 1, 2: 0}))
    readiness.check(registry, [beat(("m", 1))], "m")


def test_what_waiting_will_not_change_is_no_503():
    with pytest.raises(UnknownModel):
        readiness.check(folded(), [], "m")
    with pytest.raises(ModelRetired):
        readiness.check(folded(*TWO_VERSIONS, Retired(model="m")), [beat(("m", 1))], "m")


def test_metadata_has_numbers_for_dims_and_strings_for_versions():
    model = folded(*TWO_VERSIONS).model("m")
    assert views.model_metadata(model, model.versions[1]) == {
        "name": "m",
        "versions": ["1", "2"],
        "platform": "onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    }


def test_settings_reject_nonsense():
    with pytest.raises(ValidationError):
        GatewaySettings(gateway_port=0)
