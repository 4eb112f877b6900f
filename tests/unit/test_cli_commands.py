"""The command line through its front door: `main(arguments)` against a gateway that is scripted, over real HTTP."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from services.cli import follow
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
    """Answers from `server.script`: a status and a body (a list of them is used up) by `METHOD path`.

    A body of bytes is sent as it is.
    """

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((f"{self.command} {self.path}", dict(self.headers), body))
        told = self.server.script.get(f"{self.command} {self.path}", (404, {"error": "not scripted"}))
        if isinstance(told, list):
            told = told.pop(0) if len(told) > 1 else told[0]
        content = told[1] if isinstance(told[1], bytes) else json.dumps(told[1]).encode()
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
    for command in (
        "up",
        "down",
        "status",
        "doctor",
        "gateway",
        "worker",
        "optimizer",
        "monitor",
        "archiver",
        "demo",
        "audit",
        "report",
    ):
        assert f" {command} " in out
    assert " redrive " not in out


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
    gateway.script[f"POST {path}?version=1"] = (202, {**VERSION, "state": "uploaded"})
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
    gateway.script[f"POST {path}"] = (202, {**VERSION, "state": "uploaded"})
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


@pytest.mark.parametrize("option", ["--async", "--no-wait"])
def test_infer_without_waiting_prints_the_id_and_how_to_ask(aiaas, gateway, option):
    gateway.script["GET /v2/models/digits"] = (200, METADATA)
    gateway.script["POST /v2/models/digits/infer"] = (202, {"id": "abc", "state": "queued"})
    code, out, _ = aiaas("infer", "digits", "-i", "image=[[1,2]]", option)
    assert code == 0
    assert out.startswith("abc ")
    assert "aiaas requests follow digits abc" in out
    assert gateway.asked[-1][1]["prefer"] == "respond-async"


def test_a_key_goes_along(aiaas, gateway):
    gateway.script["GET /v2/models/digits"] = (200, METADATA)
    gateway.script["POST /v2/models/digits/infer"] = (200, ANSWER)
    assert aiaas("infer", "digits", "-i", "image=[[1,2]]", "--key", 'order "7"')[0] == 0
    assert gateway.asked[-1][1]["idempotency-key"] == '"order \\"7\\""'
    code, _, err = aiaas("infer", "digits", "-i", "image=[[1,2]]", "--key", "é")
    assert code == 2
    assert "--key" in err


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ({"state": "succeeded", "result": ANSWER, "error": None}, 0, "0.25, 0.75"),
        ({"state": "queued", "queue_position": None, "result": None, "error": None}, 0, "abc is queued"),
        ({"state": "queued", "queue_position": 4, "result": None, "error": None}, 0, "abc is queued, 4 before it"),
        ({"state": "failed", "result": None, "error": {"code": "execution_failed", "message": "boom"}}, 1, "boom"),
    ],
)
def test_the_state_of_a_request(aiaas, gateway, state, code, words):
    gateway.script["GET /v2/models/digits/requests/abc"] = (200, {"id": "abc", **state})
    found, out, err = aiaas("requests", "get", "digits", "abc")
    assert found == code
    assert words in out + err


EVENTS = "GET /v2/models/digits/requests/abc/events"


def told(name, state, **more):
    fields = {"id": "abc", "state": state, "queue_position": None, "result": None, "error": None, **more}
    return f"event: {name}\nid: {state}\ndata: {json.dumps(fields, ensure_ascii=False)}\n\n".encode()


def test_following_tells_each_state_and_ends_with_the_result(aiaas, gateway):
    gateway.script[EVENTS] = (
        200,
        b"retry: 1000\n"
        + told("state", "queued", queue_position=2)
        + b": nothing new\n\n"
        + told("state", "queued", queue_position=0)
        + told("state", "running")
        + told("outcome", "succeeded", result=ANSWER | {"model_version": "\u2028"}),
    )
    code, out, err = aiaas("requests", "follow", "digits", "abc")
    assert code == 0
    assert "0.25, 0.75" in out
    assert err.splitlines() == ["  abc: queued, 2 before it", "  abc: queued, next", "  abc: running"]
    code, out, _ = aiaas("requests", "follow", "digits", "abc", "--json")
    assert (code, json.loads(out)["state"]) == (0, "succeeded")


def test_a_stream_that_breaks_is_taken_up_again(aiaas, gateway, monkeypatch):
    monkeypatch.setattr("services.cli.requests._AGAIN_S", 0.01)
    failed = {"code": "execution_failed", "message": "boom"}
    gateway.script[EVENTS] = [
        (200, told("state", "queued") + b'event: stopping\ndata: {"error": "going"}\n\n'),
        (503, {"error": "stopping"}),
        (200, told("state", "running") + b"event: outc"),
        (200, told("outcome", "failed", error=failed)),
    ]
    code, _, err = aiaas("requests", "follow", "digits", "abc")
    assert code == 1
    assert err.splitlines()[:2] == ["  abc: queued", "  abc: running"]
    assert "boom" in err


@pytest.mark.parametrize(("status", "words"), [(404, "was never accepted"), (503, "streams are open")])
def test_following_what_is_not_told_is_1_at_once(aiaas, gateway, status, words):
    gateway.script[EVENTS] = (status, {"error": words})
    assert aiaas("requests", "follow", "digits", "abc")[::2] == (1, f"aiaas: {words}\n")


def test_following_gives_up_in_time(aiaas, gateway, monkeypatch):
    monkeypatch.setattr("services.cli.requests._AGAIN_S", 0.01)
    gateway.script[EVENTS] = (200, told("state", "queued", queue_position=9))
    code, _, err = aiaas("requests", "follow", "digits", "abc", "--timeout-s", "0.1")
    assert code == 1
    assert "abc is still queued, 9 before it after 0.1 s" in err


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
        (("load", "digits"), "load", b""),
    ],
)
def test_decisions_on_a_model(aiaas, gateway, arguments, asked, body):
    gateway.script[f"POST /v2/repository/models/digits/{asked}"] = (200, {**MODEL, "weights": {"1": 90, "2": 10}})
    code, out, _ = aiaas("models", *arguments)
    assert code == 0
    assert out == "digits answers with: version 1 (90%), version 2 (10%)\n"
    assert gateway.asked[0][2] == body


def test_unloading_says_that_nothing_answers(aiaas, gateway):
    gateway.script["POST /v2/repository/models/digits/unload"] = (200, {**MODEL, "unloaded": True})
    assert aiaas("models", "unload", "digits")[:2] == (0, "digits answers with: nothing, it is unloaded\n")


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
    requests = {"mine.requests.{model}", "mine.requests.{model}.high"}
    assert {row["topic"] for row in json.loads(out)} == {f"mine.{t.name}" for t in FIXED} | requests
    code, out, _ = aiaas("topics", "--asyncapi")
    assert code == 0
    addresses = {channel["address"] for channel in json.loads(out)["channels"].values()}
    assert addresses == {f"mine.{t.name}" for t in FIXED} | requests | {"{replyTopic}"}


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


# ------------------------------------------------------------------ texts, pictures, and steps around a model

TEXTS = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}], "outputs": []}


def elements_sent(gateway):
    _, headers, body = gateway.asked[-1]
    request = oip.decode_request(headers["content-type"], body, int(headers["inference-header-content-length"]))
    return request, tensors.bytes_elements(request.inputs[0])


@pytest.mark.parametrize(
    ("values", "elements"),
    [
        (["a good movie"], [b"a good movie"]),
        (['"quoted"'], [b"quoted"]),
        (["42"], [b"42"]),
        (['["a", "b"]'], [b"a", b"b"]),
        (["@picture.jpg"], [b"\xff\xd8\x00"]),
        (["@list.json"], [b"x", b"y"]),
        (["@-"], [b"from a pipe\n"]),
        (["one", "@picture.jpg", "two"], [b"one", b"\xff\xd8\x00", b"two"]),
    ],
)
def test_bytes_are_texts_or_files(aiaas, gateway, monkeypatch, tmp_path, values, elements):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\x00")
    (tmp_path / "list.json").write_text('["x", "y"]')
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe\n")))
    gateway.script["GET /v2/models/minilm"] = (200, TEXTS)
    gateway.script["POST /v2/models/minilm/infer"] = (200, ANSWER)
    assert aiaas("infer", "minilm", *(part for value in values for part in ("-i", f"text={value}")))[0] == 0
    request, sent = elements_sent(gateway)
    assert sent == elements
    assert request.inputs[0].shape == (len(elements),)
    assert "store_outputs" not in request.parameters


def test_an_input_of_numbers_is_given_once(aiaas, gateway):
    gateway.script["GET /v2/models/digits"] = (200, METADATA)
    code, _, err = aiaas("infer", "digits", "-i", "image=[[1,2]]", "-i", "image=[[1,2]]")
    assert code == 2
    assert "image was given twice" in err


def test_outputs_in_the_store_are_shown_by_where_they_are(aiaas, gateway):
    claim = {"uri": "file:///store/sha256/ab/cd", "sha256": "ab" * 32, "byte_size": 4}
    stored = {"name": "embedding", "datatype": "FP32", "shape": [1], "parameters": claim}
    gateway.script["GET /v2/models/minilm"] = (200, TEXTS)
    gateway.script["POST /v2/models/minilm/infer"] = (200, ANSWER | {"outputs": [stored]})
    code, out, _ = aiaas("infer", "minilm", "-i", "text=hello", "--store")
    assert code == 0
    assert "file:///store/sha256" in out
    assert elements_sent(gateway)[0].parameters["store_outputs"] is True


def test_a_declarations_files_go_to_the_store_before_it(aiaas, gateway, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "labels.txt").write_bytes(b"a\nb\n")
    steps = {
        "preprocessing": [{"kind": "tokenize", "tokenizer": "tokenizer.json"}],
        "postprocessing": [{"kind": "labels", "labels": "labels.txt"}, {"kind": "labels", "labels": ["a"]}],
    }
    (tmp_path / "processing.json").write_text(json.dumps(steps))
    claims = [{"uri": f"file:///{n}", "sha256": f"{n}" * 64, "byte_size": n} for n in range(1, 4)]
    gateway.script["POST /v2/repository/assets"] = [(201, claim) for claim in claims]
    uploaded = {"name": "m", "version": 1, "state": "uploaded"}
    path = f"/v2/repository/models/m/versions?processing={'3' * 64}"
    gateway.script[f"POST {path}"] = (202, uploaded)
    command = ("models", "upload", str(tmp_path / "model.onnx"), "--name", "m")
    assert aiaas(*command, "--processing", str(tmp_path / "processing.json"))[0] == 0
    *assets, (asked, _, content) = gateway.asked
    assert asked == f"POST {path}"
    assert content == b"onnx"
    assert [body for _, _, body in assets[:2]] == [b"{}", b"a\nb\n"]
    declared = json.loads(assets[2][2])
    assert declared["preprocessing"][0]["tokenizer"] == claims[0]
    assert [step["labels"] for step in declared["postprocessing"]] == [claims[1], ["a"]]


@pytest.mark.parametrize("content", ["{", '{"preprocessing": [{"tokenizer": "nowhere.json"}]}'])
def test_a_declaration_that_can_not_be_read_is_2(aiaas, gateway, tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    (tmp_path / "processing.json").write_text(content)
    code, _, err = aiaas(
        "models",
        "upload",
        str(tmp_path / "model.onnx"),
        "--name",
        "m",
        "--processing",
        str(tmp_path / "processing.json"),
    )
    assert code == 2
    assert "--processing" in err
    assert gateway.asked == []


# --------------------------------------------------------------------------- data, updates, provenance

PATH = "/v2/repository/models/digits"
ARTIFACT = {"uri": "file:///store/aa", "sha256": "aa" * 32, "byte_size": 4}
ESTIMATE = {"value": 0.99, "low": 0.97, "high": 1.0, "rows": 150}
COMPARED = {"parent": 1, "metric": "accuracy", "own": ESTIMATE, "parents": {**ESTIMATE, "value": 0.98}, "worse": False}
MADE_OF = {
    "parent_sha256": "11" * 32,
    "recipe": "fp32",
    "parameters": "{}",
    "seed": 7,
    "tools": {"onnx": "1.23.2"},
    "data": {"data": {"sha256": "dd" * 32, "rows": 450, "offsets": {"aiaas.requests.digits/0": [3, 153]}}},
    "same_bytes": False,
}


def test_an_upload_with_data_stores_them_and_its_options_first(aiaas, gateway, tmp_path):
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    model.write_bytes(b"onnx")
    data.write_bytes(b"rows")
    gateway.script["POST /v2/repository/assets"] = [(201, ARTIFACT), (201, {**ARTIFACT, "sha256": "bb" * 32})]
    gateway.script[f"POST {PATH}/versions?optimization={'bb' * 32}"] = (202, VERSION)
    asked = ("--data", str(data), "--objective", "size", "--candidates", "int8-static, student", "--seed", "3")
    assert aiaas("models", "upload", str(model), "-n", "digits", *asked)[0] == 0
    stored, options, _ = [body for _, _, body in gateway.asked]
    assert stored == b"rows"
    assert json.loads(options) == {
        "data": {"kind": "file", "artifact": ARTIFACT},
        "candidates": ["int8-static", "student"],
        "seed": 3,
        "policy": {"objective": "size"},
    }


def test_an_update_is_followed_with_its_curves_compared_and_promoted(aiaas, gateway):
    updated = {**VERSION, "version": 2, "comparison": COMPARED}
    progress = {"step": "train: train", "fraction": 0.2, "remaining_s": 9.6, "points": {"loss/train": POINT}}
    gateway.script[f"POST {PATH}/update"] = (202, {**updated, "state": "uploaded"})
    gateway.script[f"GET {PATH}/versions/2"] = [
        (200, {**updated, "state": "optimizing", "progress": progress}),
        (200, updated),
    ]
    gateway.script[f"POST {PATH}/versions/2/promote"] = (200, MODEL)
    code, out, err = aiaas("models", "update", "digits", "--from-log", "feedback", "--epochs", "3", "--promote")
    assert code == 0
    asked = json.loads(gateway.asked[0][2])
    assert asked["data"] == {"kind": "log", "labels": "feedback", "max_rows": 10_000}
    assert asked["training"] == {"learning_rate": 0.001, "epochs": 3, "optimizer": "adamw"}
    assert err == "  digits version 2: optimizing, train: train (20%), about 10 s left, loss/train 0.25\n"
    assert "accuracy 0.9900, version 1 0.9800, on the same 150 rows: better than its parent" in out
    assert any(path.endswith("/versions/2/promote") for path, _, _ in gateway.asked)


@pytest.mark.parametrize(
    ("metric", "own", "parents", "worse", "verdict"),
    [
        ("accuracy", 0.99, 0.98, False, "better than its parent"),
        ("accuracy", 0.98, 0.98, False, "the same as its parent"),
        ("accuracy", 0.9733, 0.98, False, "worse than its parent, within what the policy allows"),
        ("accuracy", 0.9, 0.98, True, "worse than its parent, by more than the policy allows"),
        ("rmse", 0.9, 0.98, False, "better than its parent"),
        ("rmse", 0.985, 0.98, False, "worse than its parent, within what the policy allows"),
    ],
)
def test_what_is_said_of_a_comparison_is_true(metric, own, parents, worse, verdict):
    estimates = {who: {"value": value, "rows": 150} for who, value in (("own", own), ("parents", parents))}
    said = follow.comparison({"comparison": {"metric": metric, "parent": 1, "worse": worse, **estimates}})
    assert said.endswith(f"on the same 150 rows: {verdict}")


def test_why_an_upload_did_not_become_onnx_is_shown():
    conversion = {"format": "pt2", "engine": "torch", "problem": "no ONNX function found for bessel_j0"}
    shown = "pt2 that did not become ONNX, and is served by torch as it is: no ONNX function found for bessel_j0"
    assert follow.conversion({"conversion": conversion}) == shown
    assert follow.conversion({"conversion": conversion, "waits_for": "no worker"}) == f"{shown}; no worker"
    assert follow.conversion({"conversion": None, "waits_for": "no optimizer"}) == "no optimizer"


POINT = {"step": 3, "value": 0.25}


@pytest.mark.usefixtures("gateway")
def test_an_update_without_data_is_not_tried(aiaas):
    code, _, err = aiaas("models", "update", "digits")
    assert code == 2
    assert "--from-log" in err


def test_work_is_cancelled(aiaas, gateway):
    gateway.script[f"POST {PATH}/versions/1/cancel"] = (200, {**VERSION, "state": "rejected", "reason": "cancelled"})
    assert aiaas("models", "cancel", "digits", "1")[:2] == (0, "digits version 1 is rejected: cancelled\n")


def test_a_policy_is_set(aiaas, gateway):
    policy = {"objective": "size", "max_loss": None}
    gateway.script[f"POST {PATH}/policy"] = (200, {"name": "digits", "policy": policy})
    assert aiaas("models", "policy", "digits", "--objective", "size")[:2] == (0, "digits is judged by objective size\n")
    assert json.loads(gateway.asked[0][2]) == {"objective": "size"}


def test_where_files_come_from_is_a_tree(aiaas, gateway):
    def version(number, **more):
        fp32 = {"name": "fp32", "sha256": f"{number}f" * 32, "byte_size": 9, "batch_cap": 1, "measurements": {}}
        int8 = {**fp32, "name": "int8-static", "sha256": f"{number}8" * 32}
        below = {"recipe": "int8-static", "parent_sha256": f"{number}f" * 32, "same_bytes": True}
        about = {"version": number, "sha256": "11" * 32, "variants": [fp32 | {"provenance": MADE_OF}]}
        about["variants"].append(int8 | {"provenance": MADE_OF | below})
        return VERSION | {"rejected": []} | about | more

    update = version(2, parent=1, training={"epochs": 3, "train": ["*"]}, comparison=COMPARED)
    gateway.script[f"GET {PATH}/versions"] = (200, {**MODEL, "versions": [update, version(1)]})
    _, out, _ = aiaas("models", "show", "digits")
    lines = [line.rstrip() for line in out[out.index("digits\n") :].splitlines()]
    depth = {part: next(line.index(part) for line in lines if part in line) for part in ("version 1", "version 2")}
    assert depth["version 2"] > depth["version 1"]
    assert "trained from version 1 (epochs 3)" in out
    fp32, int8 = (next(line for line in lines if f"{name};" in line) for name in ("fp32", "int8-static"))
    assert int8.index("int8-static") > fp32.index("fp32")
    told = " ".join(out.split())
    assert "450 rows" in told
    assert "aiaas.requests.digits/0 3 to 153" in told
    assert "gives the same bytes again" in told


@pytest.mark.usefixtures("gateway")
def test_doctor_says_why_kafka_is_not_reached(monkeypatch):
    monkeypatch.setenv("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("AIAAS_REDIS_URL", "redis://127.0.0.1:1/0")
    command = [sys.executable, "-m", "services.cli", "doctor", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 1
    assert "Unable connect" in ran.stdout
    assert ran.stderr == ""
