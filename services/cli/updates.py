"""`aiaas models update | cancel | policy`, and what an upload says of data and policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer

from services.cli.client import Gateway, Url
from services.cli.errors import NotTried
from services.cli.follow import comparison, follow
from services.cli.printing import Json, as_json, bar, console

_CHUNK_BYTES: Final = 1024 * 1024
_SETTLED_S: Final = 3600.0

Data = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Rows to learn and calibrate from: a NumPy .npz, or Parquet."),
]
Evaluation = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Rows to judge by; else a part of the data is held out."),
]
Objective = Annotated[str | None, typer.Option(help="What is best: latency, throughput, size or memory.")]
MaxLoss = Annotated[
    float | None, typer.Option(min=0, max=1, help="How much worse a variant may be: 0.01 is one point.")
]
TimeBudget = Annotated[float | None, typer.Option(min=1, help="Seconds for all candidates, and training, together.")]
Candidates = Annotated[
    str | None, typer.Option(help="Names of what is tried, with commas between; else what makes sense.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of all that is random; else of the file.")]


def options_of(
    gateway: Gateway,
    *,
    data: Path | None,
    evaluation: Path | None,
    candidates: str | None,
    seed: int | None,
    policy: dict[str, Any],
) -> dict[str, Any]:
    """Options as the platform has them, data stored on the way; empty if nothing is said."""
    said: dict[str, Any] = {}
    for role, file in (("data", data), ("evaluation", evaluation)):
        if file is not None:
            said[role] = {"kind": "file", "artifact": stored(gateway, file)}
    if candidates is not None:
        said["candidates"] = [name.strip() for name in candidates.split(",") if name.strip()]
    if seed is not None:
        said["seed"] = seed
    if policy:
        said["policy"] = policy
    return said


def policy_of(objective: str | None, max_loss: float | None, time_budget_s: float | None) -> dict[str, Any]:
    """What is said of a policy."""
    said = {"objective": objective, "max_loss": max_loss, "time_budget_s": time_budget_s}
    return {name: value for name, value in said.items() if value is not None}


def stored(gateway: Gateway, file: Path) -> dict[str, Any]:
    """A file's claim check, once it is in the store."""
    with file.open("rb") as content:
        return gateway.store(iter(lambda: content.read(_CHUNK_BYTES), b""), file.stat().st_size)


def stored_options(gateway: Gateway, options: dict[str, Any]) -> str | None:
    """The digest of options in the store, None for none."""
    if not options:
        return None
    document = orjson.dumps(options)
    return str(gateway.store(iter([document]), len(document))["sha256"])


def update(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    *,
    parent: Annotated[
        int | None, typer.Option(min=1, help="The version to train from; else the one that answers.")
    ] = None,
    data: Data = None,
    evaluation: Evaluation = None,
    log_labels: Annotated[
        str | None,
        typer.Option("--from-log", help="Train on logged requests, with labels from `feedback` or `results`."),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Of logged requests.")] = 10_000,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1e-3,
    epochs: Annotated[int | None, typer.Option(min=1, help="10 by default, and more of few rows.")] = None,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "adamw",
    train: Annotated[list[str] | None, typer.Option(help="Train only weights whose names match; repeatable.")] = None,
    freeze: Annotated[list[str] | None, typer.Option(help="Leave weights whose names match; repeatable.")] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="A new head for so many classes.")] = None,
    trials: Annotated[int, typer.Option(min=0, help="Search the learning rate and weight decay by so many.")] = 0,
    objective: Objective = None,
    max_loss: MaxLoss = None,
    time_budget_s: TimeBudget = None,
    candidates: Candidates = None,
    seed: Seed = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it is ready or rejected.")] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Let it answer, if it is no worse than its parent.")
    ] = False,
    timeout_s: Annotated[float, typer.Option(min=1, help="Follow it for so many seconds at most.")] = _SETTLED_S,
    url: Url = None,
    json: Json = False,
) -> None:
    """Train a new version from one that is ready; it goes through the gate, and beside its parent.

    Data are a file (--data) or logged requests (--from-log). The new version answers only once it is promoted.
    """
    if (data is None) == (log_labels is None):
        raise NotTried("An update is trained on data: give --data FILE or --from-log feedback, one of both.")
    training: dict[str, Any] = {"learning_rate": learning_rate, "optimizer": optimizer}
    training |= {} if epochs is None else {"epochs": epochs}
    training |= {name: given for name, given in (("train", train), ("freeze", freeze), ("classes", classes)) if given}
    if trials:
        training["search"] = {"trials": trials}
    with Gateway(url) as gateway:
        policy = policy_of(objective, max_loss, time_budget_s)
        asked = options_of(gateway, data=data, evaluation=evaluation, candidates=candidates, seed=seed, policy=policy)
        if log_labels is not None:
            asked["data"] = {"kind": "log", "labels": log_labels, "max_rows": max_rows}
        asked |= {"training": training} | ({} if parent is None else {"parent": parent})
        updated = gateway.change(model, "update", asked)
        if not (wait or promote):
            _say(updated, json=json)
            return
        with bar(console(stderr=True)) as tell:
            settled = follow(gateway, model, updated["version"], tell, timeout_s=timeout_s)
        if promote and settled["state"] == "ready":
            gateway.change(model, f"versions/{updated['version']}/promote")
            settled = gateway.version(model, updated["version"])
    from services.cli.models import show_settled  # noqa: PLC0415 - it adds this command to its own

    show_settled(settled, json=json)
    if not json and (compared := comparison(settled)) is not None:
        console().print(compared, markup=False, soft_wrap=True)


def cancel(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    version: Annotated[int, typer.Argument(min=1, help="The version's number.")],
    *,
    url: Url = None,
    json: Json = False,
) -> None:
    """End the work on a version that is not ready yet. What is finished of it is kept for the same upload again."""
    with Gateway(url) as gateway:
        cancelled = gateway.change(model, f"versions/{version}/cancel")
    if json:
        as_json(cancelled)
    else:
        console().print(f"{model} version {version} is {cancelled['state']}: {cancelled['reason']}", markup=False)


def policy(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    *,
    objective: Objective = None,
    max_loss: MaxLoss = None,
    time_budget_s: TimeBudget = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Say what versions are judged by from now on; without options, by the optimizer's settings again."""
    with Gateway(url) as gateway:
        changed = gateway.change(model, "policy", policy_of(objective, max_loss, time_budget_s))
    if json:
        as_json(changed)
        return
    said = {name: value for name, value in (changed["policy"] or {}).items() if value is not None}
    words = ", ".join(f"{name} {value}" for name, value in said.items())
    console().print(f"{model} is judged by {words or 'the settings of the optimizer'}", markup=False)


def _say(updated: dict[str, Any], *, json: bool) -> None:
    if json:
        as_json(updated)
        return
    name, number = updated["name"], updated["version"]
    console().print(f"{name} version {number} is {updated['state']}: aiaas models show {name} --version {number}")
