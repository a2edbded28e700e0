"""The page in a real browser, in front of a real Prometheus: every panel is drawn, a click chooses, and nothing complains."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from splitwatt_lab.browser import browser_program
from splitwatt_lab.processes import ProcessGroup
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_panels.model import PanelSet
from splitwatt_panels.page.model_json import page_model
from splitwatt_panels.page.server import page_server
from splitwatt_panels.sets import SETS
from support.every_metric import every_metric
from support.exporter import Exporter
from support.some import some
from support.waiting import eventually

PATIENCE_MS = 120_000.0


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    exporter = Exporter(every_metric())
    folder = tmp_path_factory.mktemp("prometheus")
    with ProcessGroup(folder / "logs") as group:
        prometheus = PrometheusServer(group, folder / "data")
        prometheus.start()
        prometheus.set_targets("twin", {exporter.address: {}})
        eventually("rates are there", lambda: len(prometheus.query("rate(splitwatt_decision_seconds_count[5s])")) > 0)
        server = page_server(("127.0.0.1", 0), prometheus.url, page_model(SETS, scrape_s=1.0))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()
    exporter.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(browser_program()), args=["--no-sandbox"])
        yield found
        found.close()


@dataclass
class Seen:
    """What the browser said and asked since the page was opened."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)

    def drawn(self, times: int) -> None:
        """Until everything was drawn so many times. A locator, for the page's policy lets nobody evaluate a string in it."""
        self.page.locator(f'body[data-drawn="{times}"]').wait_for(state="attached")


@pytest.fixture
def seen(browser: Browser) -> Iterator[Seen]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PATIENCE_MS)
    found = Seen(page)

    def asked(url: str) -> None:
        parts = urlsplit(url)
        if parts.path.endswith("query_range"):
            found.queries.append({name: values[0] for name, values in parse_qs(parts.query).items()})

    page.on("console", lambda said: found.complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("request", lambda request: asked(request.url))
    yield found
    page.close()


def opened(seen: Seen, address: str, panels: PanelSet, *, refresh: int = 0) -> Page:
    seen.page.goto(f"{address}/#set={panels.key}&range=300&refresh={refresh}")
    seen.drawn(1)
    return seen.page


@pytest.mark.parametrize("panels", SETS, ids=[s.key for s in SETS])
def test_every_panel_is_drawn_and_nothing_complains(seen: Seen, address: str, panels: PanelSet) -> None:
    page = opened(seen, address, panels)
    for panel in some(panels.panels):
        body = page.locator(f'article[data-title="{panel.title}"] > div')
        assert body.inner_text() != "no data", f"{panel.title} is empty"
        if panel.look.value != "number":
            assert body.locator(".scatterlayer .trace").count() > 0, f"{panel.title} has no line"
    assert page.locator("article").count() == len(panels.panels)
    assert seen.complaints == []
    assert page.locator("#state").inner_text().startswith("as of ")


def test_a_click_on_a_budget_asks_of_that_budget_alone(seen: Seen, address: str) -> None:
    page = opened(seen, address, SETS[0])
    names = page.locator('[data-variable="budget"] button').all_inner_texts()
    assert names == ["All", "rack-a1", "rack-a2"]
    legend = page.locator('article[data-title="Posture"] .legendtext')
    assert sorted(legend.all_text_contents()) == ["rack-a1", "rack-a2"]
    seen.queries.clear()
    page.locator('[data-variable="budget"] button', has_text="rack-a2").click()
    seen.drawn(2)
    assert legend.all_text_contents() == ["rack-a2"]
    assert some([q for q in seen.queries if "budget=~" in q["query"]])
    assert all('budget=~"rack-a2"' in q["query"] for q in seen.queries if "budget=~" in q["query"])
    assert "var-budget=rack-a2" in page.url, "the address can be sent to somebody"
    assert page.locator('[data-variable="budget"] button[aria-pressed="true"]').all_inner_texts() == ["rack-a2"]
    assert seen.complaints == []


def test_a_longer_range_is_asked_in_longer_steps(seen: Seen, address: str) -> None:
    page = opened(seen, address, SETS[-1])
    short = seen.queries[-1]
    seen.queries.clear()
    page.locator("#range").select_option("86400")
    seen.drawn(2)
    (window,) = {(int(q["end"]) - int(q["start"]), q["step"]) for q in some(seen.queries)}
    assert window == (86400, "288") and int(short["end"]) - int(short["start"]) == 300
    assert some([q["query"] for q in seen.queries if "rate(" in q["query"]])
    assert all("[289s]" in q["query"] for q in seen.queries if "rate(" in q["query"]), "a rate spans its step"
    assert seen.complaints == []


def test_it_asks_again_by_itself(seen: Seen, address: str) -> None:
    opened(seen, address, SETS[3], refresh=5)
    seen.drawn(2)
    seen.drawn(3)
    assert seen.complaints == []


def test_what_prometheus_refuses_is_said(seen: Seen, address: str) -> None:
    seen.page.route("**/query_range*", lambda route: route.fulfill(status=502, body="Prometheus at x does not answer: y\n"))
    page = opened(seen, address, SETS[0])
    assert page.locator("#state").inner_text() == "Prometheus at x does not answer: y"
    assert some(seen.complaints), "or the other tests could not fail"


def test_only_questions_of_panels_are_passed_on(address: str) -> None:
    for path in (
        "/api/v1/admin/tsdb/delete_series",
        "/api/v1/status/config",
        "/api/v1/query/../status/flags",
        "/page.py",
        "/../model.py",
    ):
        assert httpx.get(f"{address}{path}").status_code == 404, path
    assert httpx.post(f"{address}/api/v1/query", data={"query": "up"}).status_code == 501
    refused = httpx.get(f"{address}/api/v1/query", params={"query": "sum("})
    assert refused.status_code == 400 and "parse error" in refused.json()["error"]
    assert httpx.get(f"{address}/api/v1/query", params={"query": "up"}).json()["status"] == "success"


def test_files_are_ours_alone(address: str) -> None:
    page = httpx.get(f"{address}/")
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"plotly.js", "page.js", "page.css"} <= set(named)
    assert all(httpx.get(f"{address}/{name}").status_code == 200 for name in named if not name.startswith("data:"))
