"""The end point of queries, as people give it on the command line: where it is, who may ask, and what every query carries.

Secrets stand in files, never in arguments: files are read again at every query, so that a token that rotates is the one
that is sent, and certificates whenever they changed.
"""

from __future__ import annotations

import argparse
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from splitwatt_api.promql import is_matcher

METHODS: Final = ("POST", "GET")
OWN_ARGUMENTS: Final = ("query", "timeout", "time")
"""Of a query, which no extra argument may take over."""


class EndPointError(Exception):
    """A file of the end point cannot be used; the sentence says which one and why."""


@dataclass(frozen=True, slots=True)
class EndPoint:
    """`url`: the server's root, with any path prefix. `matchers`: label matchers put into every selector. `headers` and
    `header_files`: name and value, name and file that holds it. Files are None where nothing of the kind is used."""

    url: str
    method: str = "POST"
    arguments: tuple[tuple[str, str], ...] = ()
    matchers: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    header_files: tuple[tuple[str, Path], ...] = ()
    token_file: Path | None = None
    user: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    def request_headers(self) -> dict[str, str]:
        """Those of one request, from the files as they are now. Raises EndPointError."""
        found = dict(self.headers)
        found.update({name: _header_secret(path) for name, path in self.header_files})
        if self.token_file is not None:
            found["Authorization"] = f"Bearer {_header_secret(self.token_file)}"
        if self.user is not None:
            if ":" in self.user:
                raise EndPointError(
                    f"the user {self.user} has a colon, which basic authentication cannot carry: name another one"
                )
            password = "" if self.password_file is None else _secret(self.password_file)
            found["Authorization"] = aiohttp.encode_basic_auth(self.user, password)
        return found

    def tls_version(self) -> tuple[int, ...]:
        """Changes when one of the certificates' files does. Raises EndPointError."""
        files = [path for path in (self.ca_file, self.certificate_file, self.key_file) if path is not None]
        try:
            return tuple(path.stat().st_mtime_ns for path in files)
        except OSError as error:
            raise EndPointError(f"cannot read {error.filename} ({error.strerror})") from error

    def tls(self) -> ssl.SSLContext:
        """Raises EndPointError."""
        try:
            if self.ca_file is None:
                context = ssl.create_default_context()
            else:
                context = ssl.create_default_context(cafile=str(self.ca_file))
        except OSError as error:  # ssl.SSLError is one
            raise EndPointError(f"{self.ca_file} holds no certificates of a CA in PEM ({_words(error)})") from error
        if self.certificate_file is not None:
            try:
                context.load_cert_chain(str(self.certificate_file), None if self.key_file is None else str(self.key_file))
            except OSError as error:
                raise EndPointError(
                    f"{self.certificate_file} and {self.key_file or 'no key file'} are no client certificate with its key in PEM "
                    f"({_words(error)})"
                ) from error
        return context


def _secret(path: Path) -> str:
    """Without the mark that some editors put before a text, and the line end that most put after it."""
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EndPointError(f"cannot read {path} ({_words(error)})") from error


def _header_secret(path: Path) -> str:
    """Never shown, whatever is wrong with it."""
    value = _secret(path)
    if not value:
        raise EndPointError(f"{path} is empty: write the value into it, on one line")
    if not _fits_a_header(value):
        raise EndPointError(f"{path} holds more than one line of printable ASCII, which is all that an HTTP header carries")
    return value


def _fits_a_header(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


# ------------------------------------------------------------------------------------------------------ the command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Prometheus")
    group.add_argument("--prometheus-url", required=True, type=_url, metavar="URL", help="root of the Prometheus server to ask")
    group.add_argument(
        "--prometheus-method", choices=METHODS, default="POST", help="of queries; GET is also tried where POST is refused (POST)"
    )
    group.add_argument(
        "--prometheus-query-arg", action="append", default=[], type=_argument, metavar="KEY=VALUE",
        help="added to every query, for example latency_offset=1s or nocache=1 (VictoriaMetrics); may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--prometheus-matcher", action="append", default=[], type=_matcher, metavar="MATCHER",
        help='put into every selector where several clusters share one end point, for example cluster="a"; may be repeated',
    )  # fmt: skip
    group.add_argument(
        "--prometheus-header", action="append", default=[], type=_header, metavar="NAME=VALUE",
        help="sent with every query, for example X-Scope-OrgID=team-a; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--prometheus-header-file", action="append", default=[], type=_header, metavar="NAME=FILE",
        help="the same, its value read from a file; may be repeated",
    )  # fmt: skip
    group.add_argument("--prometheus-token-file", type=Path, metavar="FILE", help="bearer token, read again at every query")
    group.add_argument("--prometheus-user", metavar="NAME", help="of basic authentication")
    group.add_argument("--prometheus-password-file", type=Path, metavar="FILE", help="its password")
    group.add_argument("--prometheus-ca-file", type=Path, metavar="FILE", help="CA certificates in PEM, instead of the system's")
    group.add_argument("--prometheus-cert-file", type=Path, metavar="FILE", help="client certificate in PEM")
    group.add_argument("--prometheus-key-file", type=Path, metavar="FILE", help="its key, where it is not in the same file")


def end_point(parser: argparse.ArgumentParser, given: argparse.Namespace) -> EndPoint:
    """Of a parsed command line; what contradicts itself ends in a sentence and exit code 2."""
    made = EndPoint(
        url=given.prometheus_url,
        method=given.prometheus_method,
        arguments=tuple(given.prometheus_query_arg),
        matchers=tuple(given.prometheus_matcher),
        headers=tuple(given.prometheus_header),
        header_files=tuple((name, Path(file)) for name, file in given.prometheus_header_file),
        token_file=given.prometheus_token_file,
        user=given.prometheus_user,
        password_file=given.prometheus_password_file,
        ca_file=given.prometheus_ca_file,
        certificate_file=given.prometheus_cert_file,
        key_file=given.prometheus_key_file,
    )
    if made.user is not None and made.token_file is not None:
        parser.error("give --prometheus-token-file or --prometheus-user, not both: one header carries either")
    if made.password_file is not None and made.user is None:
        parser.error("--prometheus-password-file needs --prometheus-user")
    if made.key_file is not None and made.certificate_file is None:
        parser.error("--prometheus-key-file needs --prometheus-cert-file")
    if (made.ca_file or made.certificate_file) and not made.url.startswith("https://"):
        parser.error("certificates need an --prometheus-url that begins with https://")
    try:
        made.tls()
        made.request_headers()
    except EndPointError as error:
        parser.error(str(error))
    return made


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} must begin with http:// or https://")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no URL ({error}): write for example http://prometheus:9090") from error
    if not host:
        raise argparse.ArgumentTypeError(f"{text!r} names no host: write for example http://prometheus:9090")
    return text


def _pair(text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} must have the form {form}")
    return name.strip(), value.strip()


def _argument(text: str) -> tuple[str, str]:
    name, value = _pair(text, "KEY=VALUE")
    if name in OWN_ARGUMENTS:
        raise argparse.ArgumentTypeError(f"{name} is the query's own: leave it out")
    return name, value


def _header(text: str) -> tuple[str, str]:
    name, value = _pair(text, "NAME=VALUE")
    if not name.isascii() or any(c.isspace() or c in '":;,()' for c in name) or not _fits_a_header(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no HTTP header: write NAME=VALUE, for example X-Scope-OrgID=team-a")
    return name, value


def _matcher(text: str) -> str:
    if not is_matcher(text):
        raise argparse.ArgumentTypeError(f'{text!r} is no label matcher: write for example cluster="a", with the quotes')
    return text.strip()
