"""The demo's steps after the start, each of which shows something and checks it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import onnxruntime

from services.cli.client import Gateway
from services.cli.demo import digits, files, proof, upstream, worse
from services.cli.demo.update import update
from services.cli.errors import CommandError
from services.cli.follow import follow, variants_table
from services.cli.printing import activity, bar, size, table
from services.cli.report import fetch
from services.cli.trust import trust
from services.cli.updates import stored_options
from shared.topics import OUTCOMES

if TYPE_CHECKING:
    import numpy.typing as npt
    from rich.console import Console

    from services.cli.demo.place import Place

    Scores = npt.NDArray[np.float32]

FILES, DIGITS = "magika", "digits-cnn"
_GATE_TIMEOUT_S = 300.0
_BUDGET_S = 20.0
"""For the candidates of a model. The default finds more, and takes longer than a demo should."""
_PRODUCE_TIMEOUT_S = 30.0
_OUTCOMES_TIMEOUT_S = 120.0
_STATS_TIMEOUT_S = 30.0
_POLL_S = 0.2
_LEAST_ACCURACY = 0.98
_LEAST_AGREEMENT = 0.99
_MS_PER_S = 1000


def tell(out: Console, place: Place) -> None:
    """All steps.

    Raises:
        CommandError: something is not as it should be; says what.
    """
    magika = files.Magika()
    digits_path = _train(out, place)
    try:
        _upload(out, place, {FILES: magika.model_path, DIGITS: digits_path})
        identified = _identify_files(out, place, magika)
        ids, labels = _classify_digits(out, place, digits_path)
        out.print("\n[bold]6. An update: the digits model learns from feedback on those requests[/]")
        update(out, place, DIGITS, ids, labels.tolist())
        worse.refused(out, place, DIGITS, digits_path)
        _count_outcomes(out, place, {FILES: identified, DIGITS: len(ids)})
        _report(out, place)
        proof.replay(out, place, {FILES: identified, DIGITS: len(ids)})
    except (httpx.HTTPError, upstream.Failed) as err:
        raise CommandError(f"The demo stopped: {err}.") from err
    _where_next(out, digits_path)


def _train(out: Console, place: Place) -> Path:
    out.print("\n[bold]2. A model of our own: a small CNN that reads handwritten digits[/]")
    started_s = time.monotonic()
    with activity(out) as say:
        say("training it with torch, and exporting it to ONNX (once; then it is kept)")
        path, fresh = digits.cached_model(place.cache_dir)
    took = f"trained and exported in {time.monotonic() - started_s:.0f} s" if fresh else "trained by an earlier demo"
    out.print(f"  {path.name}, {size(path.stat().st_size)}, {took}", soft_wrap=True)
    return path


def _upload(out: Console, place: Place, models: dict[str, Path]) -> None:
    out.print("\n[bold]3. Two uploads; the optimizer reacts: vets, builds variants, measures, chooses[/]")
    with Gateway(place.gateway_url) as gateway:
        numbers = {}
        for name, path in models.items():
            byte_size = path.stat().st_size
            options = stored_options(gateway, {"policy": {"time_budget_s": _BUDGET_S}})
            content = [path.read_bytes()]
            numbers[name] = gateway.upload(name, content, byte_size, optimization=options)["version"]
            what = f"{path.name} ({size(byte_size)}) as {name} version {numbers[name]}"
            out.print(f"  uploaded {what}", soft_wrap=True)
        for name, number in numbers.items():
            _await_gate(out, gateway, name, number)


def _await_gate(out: Console, gateway: Gateway, name: str, number: int) -> None:
    """Follow a version through the gate and show what was measured."""
    started_s = time.monotonic()
    with bar(out) as tell_of:
        version = follow(gateway, name, number, tell_of, timeout_s=_GATE_TIMEOUT_S)
    if version["state"] != "ready":
        raise CommandError(f"{name} was {version['state']}: {version['reason']}")
    took_s = time.monotonic() - started_s
    out.print(f"\n  [bold]{name}[/] is ready after {took_s:.1f} s; the gate chose {version['chosen']}:")
    out.print(variants_table(version))


def _identify_files(out: Console, place: Place, magika: files.Magika) -> int:
    """Identify files by HTTP; returns how many."""
    out.print(f"\n[bold]4. Real files, identified by HTTP: POST /v2/models/{FILES}/infer[/]")
    shown, wrong = table("file", "size", "is", "score", "ms"), []
    samples = files.samples(magika.model_path)
    with httpx.Client(base_url=place.gateway_url, timeout=60.0, verify=trust()) as http:
        for sample in samples:
            features = magika.features(sample.content)
            body = _one_input(files.INPUT, "INT32", [1, len(features)], features)
            started_s = time.monotonic()
            answer = http.post(f"/v2/models/{FILES}/infer", json=body)
            took_ms = (time.monotonic() - started_s) * _MS_PER_S
            label, score = magika.label(answer.raise_for_status().json()["outputs"][0]["data"])
            style = "green" if label == sample.label else "red"
            shown.add_row(
                sample.name, size(len(sample.content)), f"[{style}]{label}[/]", f"{score:.3f}", f"{took_ms:.0f}"
            )
            wrong += [] if label == sample.label else [f"{sample.name} is {sample.label}, not {label}"]
    out.print(shown)
    if wrong:
        raise CommandError(f"Files were not recognised: {'; '.join(wrong)}.")
    return len(samples)


def _classify_digits(out: Console, place: Place, model_path: Path) -> tuple[list[str], digits.Labels]:
    """Classify the digits test set straight from Kafka; returns the requests' ids, and which digits they show."""
    topic, outcomes = place.topics.requests(DIGITS), place.topics.name(OUTCOMES)
    out.print(f"\n[bold]5. The digits test set straight from Kafka: confluent-kafka to {topic}[/]")
    _, _, images, labels = digits.digits()
    bodies = (_one_input(digits.INPUT, "FP32", [1, *image.shape], image.ravel().tolist()) for image in images)
    started_s = time.monotonic()
    ids = upstream.produce(place.bootstrap_servers, topic, bodies, _PRODUCE_TIMEOUT_S)
    with activity(out) as say:
        seen = upstream.await_outcomes(
            place.bootstrap_servers, outcomes, ids, _OUTCOMES_TIMEOUT_S, lambda n: say(f"{n} of {len(ids)} outcomes")
        )
    took_s = time.monotonic() - started_s
    rate = f"{took_s:.1f} s, {seen / took_s:.0f} a second"
    out.print(f"  {len(ids)} requests produced, {seen} outcomes on {outcomes} ({rate})", soft_wrap=True)
    if seen != len(ids):
        raise CommandError(f"{len(ids) - seen} of {len(ids)} requests had no outcome within {_OUTCOMES_TIMEOUT_S:g} s.")
    with httpx.Client(base_url=place.gateway_url, timeout=30.0, verify=trust()) as http:
        scores = np.array([upstream.result(http, DIGITS, request_id) for request_id in ids], dtype=np.float32)
    _compare(out, scores, _reference(model_path, images), labels)
    return ids, labels


def _reference(model_path: Path, images: digits.Images) -> Scores:
    """The same images through ONNX Runtime, here and now, without the platform."""
    session = onnxruntime.InferenceSession(model_path.read_bytes(), providers=["CPUExecutionProvider"])
    scores: Scores = session.run(None, {digits.INPUT: images})[0]
    return scores


def _compare(out: Console, scores: Scores, reference: Scores, labels: digits.Labels) -> None:
    accuracy, its_accuracy = (float(np.mean(s.argmax(axis=1) == labels)) for s in (scores, reference))
    agreement = float(np.mean(scores.argmax(axis=1) == reference.argmax(axis=1)))
    shown = table("", "accuracy")
    shown.add_row("the platform, from Kafka", f"[bold]{accuracy:.4f}[/]")
    shown.add_row("ONNX Runtime, called directly on the uploaded file", f"{its_accuracy:.4f}")
    out.print(shown)
    difference = float(np.abs(scores - reference).max())
    out.print(f"  the same digit for {agreement:.2%} of the images; scores differ by {difference:.2g} at most")
    if accuracy < _LEAST_ACCURACY or agreement < _LEAST_AGREEMENT:
        raise CommandError(f"The platform's answers are off: accuracy {accuracy:.4f}, agreement {agreement:.4f}.")


def _count_outcomes(out: Console, place: Place, requests: dict[str, int]) -> None:
    """Hold the monitor's exact count of outcomes against what was asked."""
    out.print("\n[bold]7. Exactly one outcome per request: the monitor counts the log[/]")
    found = _stats(place, requests)
    shown = table("model", "requests", "outcomes", "succeeded", "runs", "p50 ms", "p99 ms")
    for name, asked in requests.items():
        series = found[name]
        total, latency = sum(series["outcomes"].values()), series["latency"].get("total", {})
        shown.add_row(
            name,
            str(asked),
            str(total),
            str(series["outcomes"].get("succeeded", 0)),
            f"{series['executions']:.0f}",
            _ms(latency.get("p50_s")),
            _ms(latency.get("p99_s")),
        )
    out.print(shown)
    for name, asked in requests.items():
        if found[name]["outcomes"] != {"succeeded": asked}:
            raise CommandError(f"{name}: {asked} requests, but the log's outcomes are {found[name]['outcomes']}.")


def _stats(place: Place, requests: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The monitor's series by model, once it has as many outcomes as there were requests or time is up."""
    nothing: dict[str, Any] = {"outcomes": {}, "executions": 0.0, "latency": {}}
    deadline_s = time.monotonic() + _STATS_TIMEOUT_S
    with httpx.Client(base_url=place.monitor_url, timeout=10.0, verify=trust()) as http:
        while True:
            series = http.get("/v1/stats").raise_for_status().json()["models"]
            found = {name: next((each for each in series if each["model"] == name), nothing) for name in requests}
            complete = all(sum(found[name]["outcomes"].values()) >= asked for name, asked in requests.items())
            if complete or time.monotonic() > deadline_s:
                return found
            time.sleep(_POLL_S)


def _report(out: Console, place: Place) -> None:
    """What happened in this demo, as one page."""
    out.print("\n[bold]8. The monitor's report of all this[/]")
    content = fetch(place.monitor_url, "30m", None, None, "html")
    place.report_path.write_bytes(content)
    out.print(f"  {_from_here(place.report_path)} ({size(len(content))}): open it in a browser", soft_wrap=True)


def _where_next(out: Console, digits_path: Path) -> None:
    aiaas = "aiaas" if which("aiaas") else _from_here(Path(sys.argv[0]))
    out.print("\n[bold]Where to look next[/]")
    for command, what in {
        "make up": "the platform, until Ctrl-C; then, in another terminal:",
        f"{aiaas} models upload {_from_here(digits_path)} --name {DIGITS} --wait": "an upload goes through the gate",
        f"{aiaas} models show {DIGITS}": "what was measured, what was chosen, and why",
        f"{aiaas} status; {aiaas} topics; {aiaas} dead-letters list": "processes, the map of the log, what went wrong",
        "README.md": "both ways through the system, the Kafka contract, configuration",
    }.items():
        out.print(f"  [bold]{command}[/]\n      {what}", soft_wrap=True)


def _from_here(path: Path) -> str:
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _one_input(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    """An Open Inference Protocol body with one input."""
    return {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]}


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * _MS_PER_S:.1f}"
