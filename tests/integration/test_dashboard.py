"""The dashboard in a headless Chromium: its views and states, with answers made up for what is hard to bring about."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import uvicorn
from fastapi import FastAPI

from services.monitor import routes_dashboard
from services.monitor.settings import MonitorSettings
from support import monitor_answers
from support.browser import PATIENCE_MS, chromium
from support.ports import free_port

CHECKS = (Path(__file__).parents[1] / "support/page_checks.js").read_text().partition("*/\n")[2]
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def url():
    """The page and its files, from the routes that the monitor has."""
    port = free_port()
    app = FastAPI()
    app.include_router(routes_dashboard.router(MonitorSettings(monitor_port=port), lambda: None))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


class Monitor:
    """What the page is answered; tests change it while it is open."""

    def __init__(self):
        self.away = False
        self.answers = {}
        self.posted = []

    def __call__(self, route):
        path = unquote(urlsplit(route.request.url).path)
        if self.away:
            route.abort()
        elif route.request.method == "POST":
            self.posted.append((path, route.request.headers))
            _json(route, {"model": "digits", "active": 1, "weights": {}})
        elif path == "/v1/actions":
            route.fallback()
        else:
            _json(route, self.answers.get(path) or monitor_answers.answer(path))


def _json(route, body):
    status = 404 if body is None else 200
    told = {"error": "not there", "code": "unknown_request"} if body is None else body
    route.fulfill(status=status, body=json.dumps(told), content_type="application/json")


@pytest.fixture
def monitor():
    return Monitor()


@pytest.fixture
def opened(browser, url, monitor):
    """Opens a view; at the end nothing was logged as an error, and no markup of the log's became an element."""
    contexts, problems = [], []

    def opened(view="", viewport=DESKTOP, **options):
        context = browser.new_context(viewport=viewport, **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.route("**/v1/**", monitor)
        page.goto(f"{url}/#/{view}")
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            assert page.locator("main img").count() == 0
            assert "owned" not in page.title()
        context.close()
    assert not [problem for problem in problems if "net::ERR_FAILED" not in problem and "404" not in problem]


VIEWS = ("", "models", "models/digits", "jobs", "requests/known", "alerts")


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_view_fits_names_its_parts_and_shows_hostile_text_as_it_is(opened, viewport):
    page = opened(viewport=viewport)
    for view in VIEWS:
        page.evaluate("view => { location.hash = `#/${view}` }", view)
        page.locator("main[aria-busy=false] h1").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        assert page.locator("h1").count() == 1
        assert page.evaluate(f"{CHECKS}.unnamed()") == [], view
    assert page.locator("#nav [aria-current=page]").inner_text().startswith("Alerts")
    page.get_by_text(monitor_answers.HOSTILE).first.wait_for()


def test_keyboard_alone_reaches_a_model_and_the_skip_link_skips(opened):
    page = opened()
    page.locator("main[aria-busy=false]").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("#nav a[data-view=models]").focus()
    page.keyboard.press("Enter")
    page.get_by_role("link", name="digits").focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="digits", exact=True).wait_for()
    assert page.title() == "digits · Models · aiaas"


def test_a_refresh_keeps_focus_typing_and_open_tables(opened):
    page = opened("models/digits")
    numbers = page.locator("summary", has_text="Numbers of Latency").first
    numbers.click()
    assert page.get_by_role("region", name="Numbers of Latency").get_by_role("row").count() > 10
    numbers.focus()
    asked = "performance.getEntriesByType('resource').filter((each) => each.name.endsWith('/v1/models')).length"
    page.wait_for_function(f"before => {asked} >= before + 2", arg=page.evaluate(asked))
    assert page.evaluate("document.activeElement.textContent") == "Numbers of Latency"
    page.get_by_role("region", name="Numbers of Latency").wait_for()


def test_promoting_asks_first_and_says_what_was_done(opened, monitor):
    page = opened("models/digits")
    page.get_by_role("button", name="Promote version 1").click()
    dialog = page.get_by_role("dialog", name="Promote version 1 of digits?")
    dialog.get_by_role("button", name="Cancel").click()
    assert not monitor.posted
    page.get_by_role("button", name="Promote version 1").click()
    dialog.get_by_role("button", name="Promote").click()
    page.get_by_text("Version 1 of digits answers now.").wait_for()
    [(path, headers)] = monitor.posted
    assert path == "/v1/models/digits/versions/1/promote"
    assert headers["x-aiaas-dashboard"] == "1"
    assert headers["content-type"] == "application/json"


def test_a_key_is_asked_for_where_one_is_needed_and_sent(opened, monitor):
    page = opened()
    page.route("**/v1/actions", lambda route: _json(route, {"offered": True, "needs_key": True}))
    page.evaluate("location.hash = '#/models/digits'")
    page.get_by_role("button", name="Roll back").click()
    page.get_by_label("API key").fill("a-long-secret")
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    page.get_by_text("Version 1 of digits answers again.").wait_for()
    assert monitor.posted[0][1]["x-api-key"] == "a-long-secret"
    assert page.evaluate("Object.keys({ ...localStorage, ...sessionStorage })") == ["aiaas-theme"]


def test_a_monitor_that_goes_away_leaves_its_numbers_says_how_old_they_are_and_comes_back(opened, monitor):
    page = opened()
    page.get_by_text("Live", exact=True).wait_for()
    monitor.away = True
    page.get_by_text("asking again").wait_for()
    page.get_by_text("Not connected").wait_for()
    page.get_by_role("heading", name="Overview").wait_for()
    monitor.away = False
    page.get_by_text("Live", exact=True).wait_for()
    page.locator("#banner.shown").wait_for(state="detached")


def test_a_view_that_never_had_an_answer_says_so_and_tries_again(opened, monitor):
    monitor.away = True
    page = opened("alerts")
    page.get_by_text("The monitor does not answer", exact=True).wait_for()
    monitor.away = False
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("heading", name="Rules").wait_for()


def test_a_platform_on_which_nothing_happened_yet_says_what_to_do(opened, monitor):
    monitor.answers = monitor_answers.EMPTY
    page = opened()
    page.get_by_text("No request has come yet").wait_for()
    texts = {"models": "No model has been uploaded yet", "jobs": "No job within the hour", "alerts": "Nothing is wrong"}
    for view, text in texts.items():
        page.evaluate("view => { location.hash = `#/${view}` }", view)
        page.get_by_text(text).wait_for()


def test_a_request_is_found_by_its_id_and_one_that_is_not_there_is_said_to_be(opened):
    page = opened("requests")
    page.get_by_label("Request id").fill("known")
    page.keyboard.press("Enter")
    page.get_by_text("Answered in").wait_for()
    assert page.get_by_role("img", name="Where the time went").get_attribute("aria-label").count(",") == 3
    page.get_by_label("Request id").fill("../../v1/overview?x=<b>")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("No outcome by this id is known").wait_for()


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_theme_is_the_systems_until_one_is_chosen_and_that_is_remembered(opened, system):
    page = opened(color_scheme=system)
    page.locator("main[aria-busy=false]").wait_for()
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(244, 246, 248)", "rgb(14, 19, 24)"
    assert page.evaluate(background) == {"light": light, "dark": dark}[system]
    for name, expected in (("light", light), ("dark", dark)):
        page.locator("#theme").click()
        assert page.locator("#theme").get_attribute("aria-label") == f"Theme: {name}"
        assert page.evaluate(background) == expected
    page.reload()
    assert page.evaluate(background) == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(opened, scheme):
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5 to 1, for every text that is to be read."""
    page = opened("models/digits", color_scheme=scheme)
    page.get_by_role("heading", name="digits", exact=True).wait_for()
    assert page.evaluate(f"{CHECKS}.pale()") == []
