"""The demo's update: the digits model learns from feedback on its own requests, and the better version answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from services.cli import provenance
from services.cli.client import Gateway
from services.cli.demo import proof
from services.cli.errors import CommandError
from services.cli.follow import comparison, follow, variants_table
from services.cli.printing import activity, bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from services.cli.demo.place import Place

_TIMEOUT_S: Final = 300.0
_TRAINING: Final = {"learning_rate": 3e-4, "epochs": 10, "batch_rows": 32}
_CANDIDATES: Final = ("int8-weight-only", "int8-static")
_MAX_LOSS: Final = 0.02
"""One in fifty of the rows that are held out, of which there are few."""


def update(out: Console, place: Place, model: str, ids: Sequence[str], labels: Sequence[int]) -> None:
    """Tell the right answers, ask for an update from the log, follow it, promote it if a back-test lets it pass.

    Raises:
        CommandError: it was rejected, or is worse than its parent.
    """
    started_s = time.monotonic()
    with Gateway(place.gateway_url) as gateway:
        with activity(out) as say:
            say(f"telling the right digits of {len(ids)} requests")
            for request_id, label in zip(ids, labels, strict=True):
                gateway.give_feedback(model, request_id, {"label": [int(label)]})
        asked = {
            "data": {"kind": "log", "labels": "feedback"},
            "training": _TRAINING,
            "candidates": _CANDIDATES,
            "policy": {"max_loss": _MAX_LOSS, "objective": "size"},  # so an INT8 variant is what will serve
        }
        number = gateway.change(model, "update", asked)["version"]
        with bar(out) as tell:
            version = follow(gateway, model, number, tell, timeout_s=_TIMEOUT_S)
        if version["state"] != "ready":
            raise CommandError(f"The update of {model} was {version['state']}: {version['reason']}")
        out.print(f"  version {number} is trained, measured and compared in {time.monotonic() - started_s:.1f} s:")
        out.print(variants_table(version))
        out.print(f"  {comparison(version)}", markup=False, soft_wrap=True)
        proof.promote(out, place, model, number)
        if gateway.versions(model)["active"] != number:
            raise CommandError(f"Version {number} of {model} was not promoted.")
        out.print(f"  promoted: version {number} answers now. Where it comes from:")
        out.print(provenance.tree(gateway.versions(model)))
