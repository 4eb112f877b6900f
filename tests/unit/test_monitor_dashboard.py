"""The dashboard's files and actions by HTTP: what is served, and who may change something."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from services.monitor import routes_dashboard
from services.monitor.settings import MonitorSettings
from shared.registry import Entry, fold
from support.facts import folded, made_ready, uploaded

HOME = "http://127.0.0.1:8090"
ACTION = {"content-type": "application/json", routes_dashboard.HEADER: "1"}
PROMOTE = "/v1/models/m/versions/2/promote"


class Log:
    """A registry's log in memory."""

    def __init__(self, *events):
        self.registry = folded(*events)
        self.written = []

    async def caught_up(self):
        return self.registry

    async def publish(self, event):
        self.written.append(event)
        self.registry = fold(self.registry, Entry(self.registry.offset + 1, 0, event))
        return self.registry


@pytest.fixture
def log():
    """Two versions that are ready; the first answers."""
    first, second = uploaded(upload_id="a"), uploaded(upload_id="b")
    return Log(first, *made_ready(version=1), second, *made_ready(version=2))


def client(log, url=HOME, **settings):
    app = FastAPI()
    app.include_router(routes_dashboard.router(MonitorSettings(**settings), lambda: log))
    return AsyncClient(transport=ASGITransport(app), base_url=url)


async def test_the_page_and_all_it_names_are_there_and_come_from_here(log):
    http = client(log)
    page = await http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    seen, todo = set(), set(re.findall(r'(?:src|href)="(/dashboard/[^"]+)"', page.text))
    while todo - seen:
        path = (todo - seen).pop()
        seen.add(path)
        file = await http.get(path)
        assert file.status_code == 200, path
        assert file.headers["x-content-type-options"] == "nosniff"
        todo |= {f"/dashboard/{name}" for name in re.findall(r'from "\./([^"]+)"', file.text)}
    assert seen == {f"/dashboard/{path.name}" for path in routes_dashboard.FILES.iterdir() if path.name != "index.html"}


def test_no_file_names_another_host_or_makes_markup_of_text():
    for path in routes_dashboard.FILES.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text), path.name


@pytest.mark.parametrize("path", ["/dashboard/../settings.py", "/dashboard/%2e%2e%2fsettings.py", "/dashboard/x.js"])
async def test_there_are_no_other_files(log, path):
    assert (await client(log).get(path)).status_code == 404


async def test_a_version_is_promoted_and_rolled_back(log):
    http = client(log)
    assert (await http.get("/v1/actions")).json() == {"offered": True, "needs_key": False}
    promoted = await http.post("/v1/models/m/versions/2/promote", headers=ACTION)
    assert (promoted.status_code, promoted.json()["active"]) == (200, 2)
    back = await http.post("/v1/models/m/rollback", headers=ACTION)
    assert (back.status_code, back.json()["active"]) == (200, 1)
    assert [type(event).__name__ for event in log.written] == ["ModelPromoted", "ModelRolledBack"]
    conflict = await http.post("/v1/models/m/rollback", headers=ACTION)
    assert (conflict.status_code, conflict.json()["code"]) == (409, "conflict")
    for path, code in (("/v1/models/x/rollback", "unknown_model"), (PROMOTE.replace("/2/", "/9/"), "unknown_version")):
        refused = await http.post(path, headers=ACTION)
        assert (refused.status_code, refused.json()["code"]) == (404, code)
    assert len(log.written) == 2


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json"},
        {routes_dashboard.HEADER: "1"},
        ACTION | {"content-type": "text/plain"},
        ACTION | {"origin": "http://evil.example"},
        ACTION | {"origin": "null"},
        ACTION | {"sec-fetch-site": "cross-site"},
        ACTION | {"sec-fetch-site": "same-site"},
        ACTION | {"host": "evil.example:8090", "origin": "http://evil.example:8090"},
    ],
)
async def test_no_other_site_can_make_a_browser_do_it(log, headers):
    refused = await client(log).post(PROMOTE, headers=headers)
    assert refused.status_code == 403
    assert not log.written


async def test_nobody_may_beyond_loopback_without_keys(log):
    http = client(log, monitor_host="0.0.0.0")
    assert (await http.get("/v1/actions")).json()["offered"] is False
    assert (await http.post(PROMOTE, headers=ACTION)).status_code == 403
    assert not log.written


async def test_with_keys_one_is_needed(log):
    http = client(log, "http://monitor.example", api_keys='{"a-long-secret": "acme"}', monitor_host="0.0.0.0")
    assert (await http.get("/v1/actions")).json() == {"offered": True, "needs_key": True}
    for headers in (ACTION, ACTION | {"x-api-key": "a-wrong-secret"}):
        refused = await http.post(PROMOTE, headers=headers)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    headers = ACTION | {"x-api-key": "a-long-secret", "origin": "http://monitor.example"}
    assert (await http.post(PROMOTE, headers=headers)).status_code == 200


async def test_before_the_log_is_followed_it_is_said_so():
    refused = await client(None).post(PROMOTE, headers=ACTION)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
