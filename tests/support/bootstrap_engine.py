"""A stand-in for an SGLang engine in one half of a split: it answers what a router asks, and keeps what it was asked.

No KV cache moves. What it is for is what the real sglang-router does with the pods and the command line that are rendered.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final

MODEL: Final = "org/model"


class BootstrapEngine:
    """At `host` and `port` until `close`. `asked`: bodies of requests for text, in order."""

    def __init__(self, host: str, port: int, mode: str) -> None:
        self.host, self.mode = host, mode
        self.asked: list[dict[str, Any]] = []
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(engine.told(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                engine.asked.append(body)
                self._answer(engine.completion())

            def _answer(self, content: dict[str, Any]) -> None:
                raw = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                """Tests say what they want."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, daemon=True).start()

    def told(self, path: str) -> dict[str, Any]:
        """As SGLang's /server_info and /model_info, of which a router reads these."""
        if path.endswith("server_info"):
            return {"model_path": MODEL, "served_model_name": MODEL, "tp_size": 1, "dp_size": 1, "disaggregation_mode": self.mode}
        if path.endswith("model_info"):
            return {"model_path": MODEL, "tokenizer_path": MODEL, "is_generation": True, "model_type": "llama"}
        return {"object": "list", "data": [{"id": MODEL, "object": "model"}]}

    def completion(self) -> dict[str, Any]:
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        choice = {"index": 0, "text": self.mode, "finish_reason": "length"}
        return {"id": "c", "object": "text_completion", "created": 1, "model": MODEL, "choices": [choice], "usage": usage}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
