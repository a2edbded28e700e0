"""End points of the field, each a stub that insists: on a token, a password, a tenant, a certificate, GET, or an argument."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from splitwatt_api.promql import is_matcher, is_plain_selector, with_matchers
from splitwatt_lab.certs import Authority, KeyPair
from splitwatt_operator.options import parse
from splitwatt_operator.telemetry.endpoint import EndPoint
from splitwatt_operator.telemetry.prometheus import MAX_ANSWER_BYTES, PrometheusClient, QueryError, Sample

ANSWER = {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {"a": "1"}, "value": [1.0, "12.5"]}]}}
FOUND = [Sample({"a": "1"}, 12.5)]
Judge = Callable[[web.Request], web.Response | None]


@asynccontextmanager
async def stub(judge: Judge, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """`judge` refuses a request with a response, or lets it pass with None."""

    async def handle(request: web.Request) -> web.Response:
        return judge(request) or web.json_response(ANSWER)

    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    scheme = "http" if tls is None else "https"
    yield f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def insists(header: str, value: str | Callable[[], str], status: int = 401) -> Judge:
    def judge(request: web.Request) -> web.Response | None:
        wanted = value if isinstance(value, str) else value()
        return None if request.headers.get(header) == wanted else web.Response(status=status, text="Unauthorized")

    return judge


async def test_a_bearer_token_is_read_from_its_file_at_every_query(tmp_path: Path) -> None:
    token, valid = tmp_path / "token", "one"
    token.write_text("one\n")
    async with (
        stub(insists("Authorization", lambda: f"Bearer {valid}")) as url,
        PrometheusClient(EndPoint(url, token_file=token), timeout_s=5.0) as prometheus,
    ):
        assert await prometheus.vector("up") == FOUND
        valid = "two"
        with pytest.raises(QueryError, match="answered 401 without JSON: give a token"):
            await prometheus.vector("up")
        token.write_text("two\n")
        assert await prometheus.vector("up") == FOUND
        token.unlink()
        with pytest.raises(QueryError, match=r"was not asked: cannot read .*token \(No such file"):
            await prometheus.vector("up")


@pytest.mark.parametrize(
    ("held", "said"),
    [("", "is empty"), ("\n", "is empty"), ("t\u00f6ken", "printable ASCII"), ("a\nb", "one line"), ("a\0b", "printable ASCII")],
)
async def test_a_file_that_no_header_can_carry_is_told_and_its_secret_is_not(tmp_path: Path, held: str, said: str) -> None:
    token = tmp_path / "secret"
    token.write_text(held, encoding="utf-8")
    async with stub(insists("Authorization", "")) as url:
        for end_point in (EndPoint(url, token_file=token), EndPoint(url, header_files=(("X-Scope-OrgID", token),))):
            async with PrometheusClient(end_point) as prometheus:
                with pytest.raises(QueryError, match=f"was not asked: .*secret .*{said}") as told:
                    await prometheus.vector("up")
                assert not held.strip() or held not in str(told.value)


async def test_a_token_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("\ufeffone\r\n", encoding="utf-8")
    async with (
        stub(insists("Authorization", "Bearer one")) as url,
        PrometheusClient(EndPoint(url, token_file=token), timeout_s=5.0) as prometheus,
    ):
        assert await prometheus.vector("up") == FOUND


async def test_basic_authentication(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("s:crèt\n")
    async with stub(insists("Authorization", f"Basic {b64encode('team:s:crèt'.encode()).decode()}")) as url:
        end_point = EndPoint(url, user="team", password_file=password)
        async with PrometheusClient(end_point, timeout_s=5.0) as prometheus:
            assert await prometheus.vector("up") == FOUND
        async with PrometheusClient(replace(end_point, user="other"), timeout_s=5.0) as prometheus:
            with pytest.raises(QueryError, match="401"):
                await prometheus.vector("up")


async def test_a_tenants_header_from_an_argument_or_a_file(tmp_path: Path) -> None:
    tenant = tmp_path / "tenant"
    tenant.write_text("team-a")
    async with stub(insists("X-Scope-OrgID", "team-a", 403)) as url:
        for end_point in (
            EndPoint(url, headers=(("X-Scope-OrgID", "team-a"),)),
            EndPoint(url, header_files=(("X-Scope-OrgID", tenant),)),
        ):
            async with PrometheusClient(end_point, timeout_s=5.0) as prometheus:
                assert await prometheus.vector("up") == FOUND
        async with PrometheusClient(url, timeout_s=5.0) as prometheus:
            with pytest.raises(QueryError, match="403 without JSON: these credentials may not ask, or no tenant"):
                await prometheus.vector("up")


def serving(pair: KeyPair, clients: Authority | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients.certificate)
    return context


async def test_a_private_ca_and_a_client_certificate_that_rotates(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours", "site"), Authority(tmp_path / "theirs", "other")
    server = ours.server("prometheus", dns_names=["localhost"], addresses=["127.0.0.1"])
    good, wrong = ours.client("good", user="splitwatt"), theirs.client("wrong", user="splitwatt")
    used = KeyPair(tmp_path / "tls.crt", tmp_path / "tls.key")

    def mount(pair: KeyPair) -> None:
        used.certificate.write_bytes(pair.certificate.read_bytes())
        used.key.write_bytes(pair.key.read_bytes())

    mount(wrong)
    async with stub(lambda request: None, serving(server, clients=ours)) as url:
        end_point = EndPoint(url, ca_file=ours.certificate, certificate_file=used.certificate, key_file=used.key)
        async with PrometheusClient(end_point, timeout_s=5.0) as prometheus:
            with pytest.raises(QueryError):
                await prometheus.vector("up")
            mount(good)
            assert await prometheus.vector("up") == FOUND
        async with PrometheusClient(replace(end_point, ca_file=theirs.certificate), timeout_s=5.0) as prometheus:
            with pytest.raises(QueryError, match="certificate verify failed"):
                await prometheus.vector("up")


@pytest.mark.parametrize("status", [405, 501])
async def test_where_post_is_not_allowed_get_is_used_from_then_on(status: int) -> None:
    asked: list[str] = []

    def judge(request: web.Request) -> web.Response | None:
        asked.append(request.method)
        if request.method != "GET":
            return web.Response(status=status, text="Method Not Allowed")
        return None if request.query.get("query") == "up" else web.Response(status=400)

    async with stub(judge) as url:
        async with PrometheusClient(url, timeout_s=5.0) as prometheus:
            assert await prometheus.vector("up") == await prometheus.vector("up") == FOUND
        assert asked == ["POST", "GET", "GET"]
        asked.clear()
        async with PrometheusClient(EndPoint(url, method="GET"), timeout_s=5.0) as prometheus:
            assert await prometheus.vector("up") == FOUND
        assert asked == ["GET"]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_arguments_go_with_every_query(method: str) -> None:
    def judge(request: web.Request) -> web.Response | None:
        fine = request.query.get("nocache") == "1" and request.query.get("latency_offset") == "1s"
        return None if fine else web.Response(status=400, text="stale")

    async with stub(judge) as url:
        arguments = (("nocache", "1"), ("latency_offset", "1s"))
        async with PrometheusClient(EndPoint(url, method=method, arguments=arguments), timeout_s=5.0) as prometheus:
            assert await prometheus.vector("up") == FOUND


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        (
            lambda: web.Response(status=302, headers={"Location": "https://login.site/"}),
            "answered 302, a redirect to 'https://login",
        ),
        (lambda: web.json_response({"error": "no org id"}, status=401), "refused the query with 401: no org id: give a token"),
        (lambda: web.json_response({"message": "quota"}, status=429), "refused the query with 429: quota"),
        (lambda: web.json_response({"status": "error", "error": "slow"}, status=503), "refused the query with 503: slow"),
        (lambda: web.json_response([], status=500), "refused the query with 500: Internal Server Error"),
        (lambda: web.Response(status=404, text="404 page not found"), "answered 404 without JSON"),
        (lambda: web.Response(text="<html>log in</html>", content_type="text/html"), "answered 200 without JSON"),
        (lambda: web.json_response({"login": "needed"}), "answered 200 with JSON that is not of Prometheus' API"),
        (lambda: web.Response(text="[" * 100_000), "answered 200 without JSON"),
        (lambda: web.Response(body=b" " * (MAX_ANSWER_BYTES + 1)), "answered with more than 16 MiB"),
    ],
)
async def test_the_http_status_is_in_the_sentence(response: Callable[[], web.Response], sentence: str) -> None:
    async with stub(lambda request: response()) as url, PrometheusClient(url, timeout_s=5.0) as prometheus:
        with pytest.raises(QueryError) as failed:
            await prometheus.vector("up")
        assert sentence in str(failed.value)


# ------------------------------------------------------------------------------------------------------------ command line

URL = ["--prometheus-url", "https://p:9090/prefix"]


def test_everything_can_be_said_on_the_command_line(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    line = [
        *URL, "--prometheus-method", "GET", "--prometheus-query-arg", "latency_offset=1s", "--prometheus-query-arg", "nocache=1",
        "--prometheus-matcher", 'cluster="a"', "--prometheus-matcher", "region!~'x|y'",
        "--prometheus-header", "X-Scope-OrgID=t=1", "--prometheus-header-file", f"X-Key={secret}",
        "--prometheus-user", "u", "--prometheus-password-file", str(secret), "--agent-silence-seconds", "65",
    ]  # fmt: skip
    options = parse(line)
    assert options.agent_silent_s == 65.0
    assert options.end_point == EndPoint(
        url="https://p:9090/prefix",
        method="GET",
        arguments=(("latency_offset", "1s"), ("nocache", "1")),
        matchers=('cluster="a"', "region!~'x|y'"),
        headers=(("X-Scope-OrgID", "t=1"),),
        header_files=(("X-Key", secret),),
        user="u",
        password_file=secret,
    )
    assert parse(URL).end_point == EndPoint("https://p:9090/prefix")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["--prometheus-url", "p:9090"], "'p:9090' must begin with http:// or https://"),
        ([*URL, "--prometheus-matcher", "cluster=a"], "'cluster=a' is no label matcher: write for example cluster=\"a\""),
        ([*URL, "--prometheus-matcher", 'a="b"} or up{'], "is no label matcher"),
        ([*URL, "--prometheus-query-arg", "query=up"], "query is the query's own"),
        ([*URL, "--prometheus-query-arg", "nocache"], "'nocache' must have the form KEY=VALUE"),
        ([*URL, "--prometheus-header", "X Y=1"], "'X Y=1' is no HTTP header"),
        ([*URL, "--prometheus-header", "X=1\r\nY: 2"], "is no HTTP header"),
        ([*URL, "--prometheus-header", "X-Scope-OrgID=team-\u00e4"], "is no HTTP header"),
        ([*URL, "--prometheus-method", "PUT"], "invalid choice: 'PUT'"),
        ([*URL, "--prometheus-token-file", "/no/such/token"], "cannot read /no/such/token (No such file or directory)"),
        ([*URL, "--prometheus-token-file", "x", "--prometheus-user", "u"], "give --prometheus-token-file or --prometheus-user"),
        ([*URL, "--prometheus-password-file", "x"], "--prometheus-password-file needs --prometheus-user"),
        ([*URL, "--prometheus-key-file", "x"], "--prometheus-key-file needs --prometheus-cert-file"),
        ([*URL, "--prometheus-user", "a:b"], "the user a:b has a colon"),
        ([*URL, "--prometheus-ca-file", __file__], "holds no certificates of a CA in PEM"),
        ([*URL, "--prometheus-cert-file", __file__], "are no client certificate with its key in PEM"),
        (["--prometheus-url", "http://p", "--prometheus-ca-file", __file__], "certificates need an --prometheus-url that begins"),
        ([*URL, "--agent-silence-seconds", "1"], "'1' must be between 2 and 300 seconds"),
        ([*URL, "--agent-silence-seconds", "soon"], "'soon' must be between 2 and 300 seconds"),
    ],
)
def test_a_wrong_command_line_says_what_to_change(line: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(line)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("selector", "with_b"),
    [
        ("up", 'up{c="b"}'),
        ("up{}", 'up{c="b"}'),
        ('up{a="x"}', 'up{a="x",c="b"}'),
        ('up{a="x",}', 'up{a="x",c="b"}'),
        (' up {a=~"}{,", z!=\'"\'} ', 'up{a=~"}{,", z!=\'"\',c="b"}'),
    ],
)
def test_a_matcher_is_put_into_a_selector_and_not_beside_it(selector: str, with_b: str) -> None:
    assert with_matchers(selector, ['c="b"']) == with_b
    assert is_plain_selector(with_b)
    assert with_matchers(selector, []) == selector


def test_what_is_no_matcher_is_never_put_into_a_query() -> None:
    for text in ("", "a", 'a="b', 'a="b",c="d"', 'a="b"} or up{x="y"', '1a="b"'):
        assert not is_matcher(text)
        with pytest.raises(ValueError, match="is not a label matcher"):
            with_matchers("up", [text])
    with pytest.raises(ValueError, match="is not a plain vector selector"):
        with_matchers("sum(up)", [])
