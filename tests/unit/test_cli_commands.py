"""The command line through its front door: `main(arguments)` against a gateway that is scripted, over real HTTP."""

from __future__ import annotations

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from services.cli.__main__ import main
from shared import oip, tensors
from shared.topics import FIXED

VERSION = {
    "name": "digits",
    "version": 1,
    "state": "ready",
    "byte_size": 2048,
    "uploaded_at": "2026-01-01T00:00:00Z",
    "chosen": "fp32",
    "code": None,
    "reason": "nothing was faster",
    "variants": [{"name": "fp32", "byte_size": 2048, "batch_cap": 32, "measurements": {"speedup": 1.0, "cosine": 1.0}}],
    "rejected": [{"variant": "int8", "reason": "0.9x is [too] slow", "measurements": None}],
}
METADATA = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 2]}], "outputs": []}
MODEL = {"name": "digits", "retired": False, "active": 1, "weights": {}, "versions": [VERSION]}
ANSWER = {
    "model_name": "digits",
    "model_version": "1",
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}],
}


class Scripted(BaseHTTPRequestHandler):
    """Answers from `server.script`: a status and a body (a list of them is used up) by `METHOD path`."""

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((f"{self.command} {self.path}", dict(self.headers), body))
        told = self.server.script.get(f"{self.command} {self.path}", (404, {"error": "not scripted"}))
        if isinstance(told, list):
            told = told.pop(0) if len(told) > 1 else told[0]
        content = json.dumps(told[1]).encode()
        self.send_response(told[0])
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = answer  # noqa: N815 - names that http.server looks for

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def serving(script):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.script, server.asked = script, []
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def gateway(monkeypatch, tmp_path):
    """A scripted gateway, which commands find by AIAAS_GATEWAY_URL; no stack runs here."""
    for variable in ("AIAAS_API_KEY", "AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL", "AIAAS_TOPIC_PREFIX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AIAAS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("AIAAS_MONITOR_URL", "http://127.0.0.1:1")
    with serving({}) as server:
        monkeypatch.setenv("AIAAS_GATEWAY_URL", f"http://127.0.0.1:{server.server_port}")
        yield server


@pytest.fixture
def aiaas(capsys):
    """Run a command; gives its exit code and what it printed."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def test_help_lists_what_exists_and_nothing_else(aiaas):
    code, out, _ = aiaas("--help")
    assert code == 0
    for command in ("up", "down", "status", "doctor", "gateway", "worker", "optimizer", "monitor", "demo", "models"):
        assert f" {command} " in out
    for later in ("audit", "report", "redrive"):
        assert f" {later} " not in out


def test_wrong_usage_is_2(aiaas):
    code, _, err = aiaas("models", "upload")
    assert code == 2
    assert "Usage" in err


@pytest.mark.usefixtures("gateway")
def test_nothing_answers_is_2_and_says_what_to_do(aiaas, monkeypatch):
    monkeypatch.setenv("AIAAS_GATEWAY_URL", "http://127.0.0.1:1")
    code, _, err = aiaas("models", "list")
    assert code == 2
    assert "http://127.0.0.1:1" in err
    assert "aiaas up" in err


def test_a_missing_key_is_2_and_names_the_variable(aiaas, gateway):
    gateway.script["GET /v2/repository/models"] = (401, {"error": "an API key is needed"})
    code, _, err = aiaas("models", "list")
    assert code == 2
    assert "AIAAS_API_KEY" in err


def test_a_refusal_is_1_in_the_gateways_words(aiaas, gateway):
    gateway.script["POST /v2/repository/models/digits/rollback"] = (409, {"error": "nothing to go back to"})
    code, _, err = aiaas("models", "rollback", "digits")
    assert (code, err) == (1, "aiaas: nothing to go back to\n")


def test_an_answer_that_is_no_gateways_is_told(aiaas, gateway):
    gateway.script["GET /v2/repository/models"] = (500, ["what?"])
    code, _, err = aiaas("models", "list")
    assert code == 1
    assert "is that a gateway?" in err


def test_the_key_is_sent(aiaas, gateway, monkeypatch):
    monkeypatch.setenv("AIAAS_API_KEY", "a-long-secret")
    gateway.script["GET /v2/repository/models"] = (200, [])
    assert aiaas("models", "list")[0] == 0
    assert gateway.asked[0][1]["authorization"] == "Bearer a-long-secret"


def test_models_are_listed_for_people_and_for_machines(aiaas, gateway):
    gateway.script["GET /v2/repository/models"] = (200, [MODEL])
    _, out, _ = aiaas("models", "list")
    assert "version 1" in out
    _, out, _ = aiaas("models", "list", "--json")
    assert json.loads(out) == [MODEL]


def test_an_upload_is_streamed_and_followed_to_ready(aiaas, gateway, tmp_path):
    file = tmp_path / "digits.onnx"
    file.write_bytes(b"onnx" * 700_000)
    path = "/v2/repository/models/digits/versions"
    gateway.script[f"POST {path}?format=onnx&version=1"] = (202, {**VERSION, "state": "uploaded"})
    gateway.script[f"GET {path}/1"] = [
        (200, {**VERSION, "state": "uploaded"}),
        (200, {**VERSION, "state": "optimizing"}),
        (200, VERSION),
    ]
    code, out, err = aiaas("models", "upload", str(file), "--name", "digits", "--version", "1", "--wait")
    assert code == 0
    assert gateway.asked[0][2] == file.read_bytes()
    assert err.splitlines() == ["  digits version 1: uploaded", "  digits version 1: optimizing"]
    assert "chosen" in out
    assert "nothing was faster" in out
    assert "0.9x is [too] slow" in out


def test_a_rejected_upload_is_1_with_its_reason(aiaas, gateway, tmp_path):
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"?")
    path = "/v2/repository/models/digits/versions"
    gateway.script[f"POST {path}?format=onnx"] = (202, {**VERSION, "state": "uploaded"})
    gateway.script[f"GET {path}/1"] = (200, {**VERSION, "state": "rejected", "reason": "it does not parse"})
    code, _, err = aiaas("models", "upload", str(file), "-n", "digits", "--wait")
    assert code == 1
    assert err.endswith("was rejected: it does not parse\n")


@pytest.mark.parametrize("form", ["json", "npy", "file"])
def test_an_input_becomes_a_tensor_of_the_models_datatype(aiaas, gateway, tmp_path, form):
    np.save(tmp_path / "in.npy", np.array([[1, 2.5]], np.float32))
    (tmp_path / "in.json").write_text("[[1, 2.5]]")
    value = {"json": "[[1, 2.5]]", "npy": f"@{tmp_path}/in.npy", "file": f"@{tmp_path}/in.json"}[form]
    gateway.script["GET /v2/models/digits"] = (200, METADATA)
    gateway.script["POST /v2/models/digits/infer"] = (200, ANSWER)
    code, out, _ = aiaas("infer", "digits", "--input", f"image={value}", "--timeout-s", "2")
    assert code == 0
    assert "0.25, 0.75" in out
    _, headers, body = gateway.asked[-1]
    request = oip.decode_request(headers["content-type"], body, int(headers["inference-header-content-length"]))
    assert request.parameters["timeout"] == 2_000_000
    assert request.inputs[0].shape == (1, 2)
    assert tensors.to_numpy(request.inputs[0]).tolist() == [[1.0, 2.5]]


@pytest.mark.parametrize(
    "text", ["other=1", "image", "image=@nowhere.npy", "image=[1", 'image=["a"]', "image=[[1],[2,3]]"]
)
def test_a_wrong_input_is_2_and_names_it(aiaas, gateway, text):
    gateway.script["GET /v2/models/digits"] = (200, METADATA)
    code, _, err = aiaas("infer", "digits", "-i", text)
    assert code == 2
    assert "--input" in err
    assert len(gateway.asked) == 1


def test_infer_without_waiting_prints_the_id(aiaas, gateway):
    gateway.script["GET /v2/models/digits"] = (200, METADATA)
    gateway.script["POST /v2/models/digits/infer"] = (202, {"id": "abc", "state": "queued"})
    code, out, _ = aiaas("infer", "digits", "-i", "image=[[1,2]]", "--no-wait")
    assert code == 0
    assert out.startswith("abc ")
    assert gateway.asked[-1][1]["prefer"] == "respond-async"


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ({"state": "succeeded", "result": ANSWER, "error": None}, 0, "0.25, 0.75"),
        ({"state": "queued", "result": None, "error": None}, 0, "abc is queued"),
        ({"state": "failed", "result": None, "error": {"code": "execution_failed", "message": "boom"}}, 1, "boom"),
    ],
)
def test_the_state_of_a_request(aiaas, gateway, state, code, words):
    gateway.script["GET /v2/models/digits/requests/abc"] = (200, {"id": "abc", **state})
    found, out, err = aiaas("requests", "get", "digits", "abc")
    assert found == code
    assert words in out + err


def test_cancelling(aiaas, gateway):
    gateway.script["DELETE /v2/models/digits/requests/abc"] = [
        (200, {"id": "abc", "state": "cancelled"}),
        (409, {"error": "it has succeeded already"}),
    ]
    assert aiaas("requests", "cancel", "digits", "abc")[0] == 0
    assert aiaas("requests", "cancel", "digits", "abc")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "asked", "body"),
    [
        (("promote", "digits", "2"), "versions/2/promote", b""),
        (("traffic", "digits", "1=90", "2=10"), "traffic", b'{"weights":{"1":90,"2":10}}'),
        (("traffic", "digits", "none"), "traffic", b'{"weights":{}}'),
        (("retire", "digits"), "retire", b""),
        (("retire", "digits", "--version", "2"), "versions/2/retire", b""),
    ],
)
def test_decisions_on_a_model(aiaas, gateway, arguments, asked, body):
    gateway.script[f"POST /v2/repository/models/digits/{asked}"] = (200, {**MODEL, "weights": {"1": 90, "2": 10}})
    code, out, _ = aiaas("models", *arguments)
    assert code == 0
    assert out == "digits answers with: version 1 (90%), version 2 (10%)\n"
    assert gateway.asked[0][2] == body


@pytest.mark.usefixtures("gateway")
def test_shares_that_are_none_are_2(aiaas):
    code, _, err = aiaas("models", "traffic", "digits", "1:90")
    assert code == 2
    assert "VERSION=WEIGHT" in err


@pytest.mark.usefixtures("gateway")
def test_topics_are_the_map(aiaas, monkeypatch):
    monkeypatch.setenv("AIAAS_TOPIC_PREFIX", "mine.")
    code, out, _ = aiaas("topics", "--json")
    assert code == 0
    assert {row["topic"] for row in json.loads(out)} == {f"mine.{t.name}" for t in FIXED} | {"mine.requests.{model}"}


@pytest.mark.usefixtures("gateway")
def test_status_and_down_without_a_stack(aiaas):
    code, out, err = aiaas("status", "--json")
    assert (code, json.loads(out)["ready"]) == (1, False)
    assert "aiaas up" in err
    assert aiaas("down")[:2] == (0, "no stack was running\n")


def test_a_service_whose_packages_are_missing_says_which_extra(aiaas, monkeypatch):
    def missing(_name):
        raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")

    monkeypatch.setattr("services.cli.run.importlib.import_module", missing)
    code, _, err = aiaas("gateway")
    assert code == 2
    assert "aiaas[gateway]" in err


def test_passwords_of_given_servers_are_not_shown():
    from services.cli.stack import _shown  # noqa: PLC0415

    assert _shown({"redis": "rediss://me:secret@host:6379/0"}) == {"redis": "rediss://***@host:6379/0"}
