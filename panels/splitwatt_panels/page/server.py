"""The page's server: four files of ours, Plotly's library out of its own package, and Prometheus' answers passed through.

The browser asks this server alone, so no Prometheus has to allow other origins. Only reading questions are passed on, and only
those that panels ask: a page that anybody can open is no way into Prometheus' other doors.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from plotly.offline import get_plotlyjs

HERE: Final = Path(__file__).resolve().parent
PASSED: Final = re.compile(r"/api/v1/(?:query_range|query|label/[a-zA-Z_][a-zA-Z0-9_]*/values)")
MAX_QUERY_CHARS: Final = 16_384
MAX_ANSWER_BYTES: Final = 32 * 2**20
TIMEOUT_S: Final = 30.0
POLICY: Final = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'none'"
"""Plotly writes its own styles and draws its pictures as data."""


@dataclass(frozen=True, slots=True)
class PageFile:
    kind: str
    body: bytes


def files(model: str) -> Mapping[str, PageFile]:
    """What the page is made of, by path. `model`: of `model_json`."""
    kinds = {
        "index.html": "text/html; charset=utf-8",
        "page.js": "text/javascript",
        "charts.js": "text/javascript",
        "page.css": "text/css",
    }
    own = {f"/{name}": PageFile(kind, (HERE / name).read_bytes()) for name, kind in kinds.items()}
    return {
        **own,
        "/": own["/index.html"],
        "/model.json": PageFile("application/json", model.encode()),
        "/plotly.js": PageFile("text/javascript", get_plotlyjs().encode()),
    }


def page_server(address: tuple[str, int], prometheus_url: str, model: str) -> ThreadingHTTPServer:
    """Bound and not yet serving. Raises OSError where the address cannot be had."""
    served, root = files(model), prometheus_url.rstrip("/")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if (found := served.get(path)) is not None:
                self._answer(HTTPStatus.OK, found.kind, found.body)
            elif PASSED.fullmatch(path) and len(self.path) <= MAX_QUERY_CHARS:
                self._pass_on()
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"There is no such page.\n")

        def _pass_on(self) -> None:
            try:
                with urllib.request.urlopen(f"{root}{self.path}", timeout=TIMEOUT_S) as response:
                    status, body = response.status, response.read(MAX_ANSWER_BYTES)
            except urllib.error.HTTPError as refusal:
                status, body = refusal.code, refusal.read(MAX_ANSWER_BYTES)
            except (OSError, ValueError) as error:
                status, body = HTTPStatus.BAD_GATEWAY, f"Prometheus at {root} does not answer: {error}\n".encode()
            self._answer(status, "application/json", body)

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("Content-Security-Policy", POLICY),
                ("X-Content-Type-Options", "nosniff"),
                ("Cache-Control", "no-cache"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A line a panel every ten seconds would hide what the terminal is for."""

    server = ThreadingHTTPServer(address, Handler)
    server.daemon_threads = True
    return server
