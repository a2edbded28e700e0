"""`splitwatt dashboards`: serve the page until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from typing import Final
from urllib.parse import urlsplit

from splitwatt_panels.page.model_json import page_model
from splitwatt_panels.page.server import page_server
from splitwatt_panels.sets import SETS

FAILED: Final = 2
SCRAPE_S: Final = 5.0
"""The chart's interval of operator and engines; agents are scraped every second."""


class DashboardsCommand:
    help = "show all dashboards in a browser, straight from Prometheus, without Grafana"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        option = parser.add_argument
        option("--prometheus", required=True, metavar="URL", help="root of the Prometheus server, with any path prefix")
        option("--listen", default="127.0.0.1:8321", metavar="HOST:PORT", help="address of the page; port 0: any (%(default)s)")
        option("--scrape-seconds", type=float, default=SCRAPE_S, metavar="S", help="longest scrape interval (%(default)s)")

    def run(self, args: argparse.Namespace) -> int:
        host, _, port = args.listen.rpartition(":")
        parts = urlsplit(args.prometheus)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            return _fail(f"--prometheus {args.prometheus} is no address; give one such as http://127.0.0.1:9090")
        if not host or not port.isdigit() or int(port) > 65535:
            return _fail(f"--listen {args.listen} is no address; give one such as 127.0.0.1:8321")
        if not args.scrape_seconds > 0:
            return _fail("--scrape-seconds is above 0")
        try:
            server = page_server((host, int(port)), args.prometheus, page_model(SETS, scrape_s=args.scrape_seconds))
        except OSError as error:
            return _fail(f"{args.listen} cannot be listened at: {error}; give another --listen")
        with server:
            at = server.server_address
            sys.stdout.write(f"dashboards: http://{at[0]!s}:{at[1]} (Ctrl-C ends it)\n")
            sys.stdout.flush()
            server.serve_forever()
        return 0


def _fail(sentence: str) -> int:
    sys.stderr.write(f"splitwatt dashboards: {sentence}\n")
    return FAILED


COMMAND: Final = DashboardsCommand()
