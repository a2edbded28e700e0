"""Requests of the lab's own hand: a kept connection that the API server closes costs a second reading, and no second writing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.errors import LabError

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"seen": %3d}'


@contextmanager
def server(*, hangs_up_at: frozenset[int]) -> Iterator[tuple[str, list[str]]]:
    """Answers with the number of the request, and hangs up instead at those named; yields its URL and what was asked."""
    asked: list[str] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                while line := lines.readline():
                    length = 0
                    while (header := lines.readline().strip()) and header:
                        name, _, value = header.partition(b":")
                        length = int(value) if name.lower() == b"content-length" else length
                    lines.read(length)
                    asked.append(line.decode().split(" ")[0])
                    if len(asked) in hangs_up_at:
                        break
                    connection.sendall(ANSWER % len(asked))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=5.0)


def plane_at(url: str, logs: Path) -> ControlPlane:
    """One that was started elsewhere."""
    plane = ControlPlane()
    plane.logs, plane._http = logs, httpx.Client(base_url=url, trust_env=False)
    return plane


def test_what_is_read_over_a_connection_that_was_closed_is_read_again(tmp_path: Path) -> None:
    with server(hangs_up_at=frozenset({2})) as (url, asked):
        plane = plane_at(url, tmp_path)
        with plane._http:
            assert plane._request("GET", "/a") == {"seen": 1}
            assert plane._request("GET", "/a") == {"seen": 3}
    assert asked == ["GET"] * 3


def test_a_server_that_hangs_up_twice_is_told_with_its_log(tmp_path: Path) -> None:
    with server(hangs_up_at=frozenset({1, 2})) as (url, asked):
        plane = plane_at(url, tmp_path)
        with plane._http, pytest.raises(LabError, match=r"GET /a failed: .*kube-apiserver\.log"):
            plane._request("GET", "/a")
    assert asked == ["GET"] * 2


@pytest.mark.parametrize("method", ["PATCH", "POST", "DELETE"])
def test_what_may_have_been_written_is_not_written_again(method: str, tmp_path: Path) -> None:
    with server(hangs_up_at=frozenset({2})) as (url, asked):
        plane = plane_at(url, tmp_path)
        with plane._http:
            plane._request("GET", "/a")
            with pytest.raises(LabError, match=f"{method} /a failed"):
                plane._request(method, "/a", {"spec": {}})
    assert asked == ["GET", method]
