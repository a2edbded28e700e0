"""One connection to an API server: single requests, each sent at most once.

Theory: the caller keeps a ledger, so a request must end as done, `Rejected` or `OutcomeUnknown` (see `errors`). No
write is ever repeated in here: a silent second attempt turns "refused" into "perhaps done by the first". Reads leave
`resourceVersion` unset, which asks for the most recent state (a quorum read), never a cached one. Objects are raw
dicts.

Inside is the official client's dynamic request path without its discovery, and with TCP keepalive, so that a peer that
vanished is noticed in about half a minute even on an idle watch.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.dynamic import DynamicClient

from splitwatt_client.errors import ApiError, ConfigurationError, OutcomeUnknown, Rejected, failure_of
from splitwatt_client.reading import Object, ObjectList
from splitwatt_client.resources import ResourceType, resource_of

log = logging.getLogger(__name__)

DEFAULT_REQUEST_TIMEOUT_S: Final = 10.0
CLOSE_S: Final = 3.0
"""Closing takes no longer, whatever the peer does."""
KEEPALIVE_IDLE_S: Final = 15
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_PROBES: Final = 3
APPLY: Final = "application/apply-patch+yaml"
MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"
UNLIMITED: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
METADATA_ALONE: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
METADATA_PAGE: Final = 500
"""Objects of one page of a list of metadata, as kubectl has it."""


def _open_socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, proto, _, _ = address
    sock = socket.socket(family=family, type=kind, proto=proto)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # Linux; elsewhere the read timeout of a watch is the only net
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        dead_after_ms = 1000 * (KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, dead_after_ms)
    return sock


def _environment_proxy(url: str) -> str | None:
    """What HTTPS_PROXY and NO_PROXY say of this server, as other clients of Kubernetes take them."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


class _KeepaliveRest(RESTClientObject):  # type: ignore[misc]  # the official client is untyped
    """The official transport with keepalive sockets and without aiohttp's silent repetition of PUT and DELETE."""

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=self.maxsize, ssl=self.ssl_context, socket_factory=_open_socket)

    def _create_pool_manager(self) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession = super()._create_pool_manager()
        session._retry_connection = False
        return session


class Connection:
    """Async context manager. `kubeconfig` None means in-cluster; `context`: of that file, None: its current one. One instance
    serves any number of concurrent tasks."""

    def __init__(
        self,
        kubeconfig: Path | None = None,
        *,
        context: str | None = None,
        request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
        user_agent: str = "splitwatt",
    ) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._request_timeout_s = request_timeout_s
        self._user_agent = user_agent
        self._client: Any = None
        self._dynamic: Any = None

    async def __aenter__(self) -> Self:
        """Raises ConfigurationError when there is no kubeconfig to read, or no cluster around this process."""
        configuration = Configuration()
        configuration.retries = None
        # Else aiohttp looks into netrc and the environment at each request, in the thread pool that all of the process shares:
        # whoever fills it would hold up every renewal of a Lease.
        configuration.client_session_kwargs = {"trust_env": False}
        try:
            if self._kubeconfig is None:
                # Either loader is imported only where it is used: each brings its own dependencies into memory.
                from kubernetes.aio.config.incluster_config import load_incluster_config  # noqa: PLC0415

                load_incluster_config(client_configuration=configuration)
            else:
                from kubernetes.aio.config.kube_config import load_kube_config  # noqa: PLC0415

                await load_kube_config(
                    config_file=str(self._kubeconfig),
                    context=self._context,
                    client_configuration=configuration,
                    persist_config=False,
                )
        except Exception as error:  # broad: the official loaders raise whatever their parsing stumbles over
            where = "the in-cluster service account" if self._kubeconfig is None else f"kubeconfig {self._kubeconfig}"
            raise ConfigurationError(
                f"cannot use {where} ({_why(error)}); pass --kubeconfig FILE or run in a pod with a service account"
            ) from error
        configuration.proxy = configuration.proxy or _environment_proxy(configuration.host)
        self._client = ApiClient(configuration)
        self._client.user_agent = self._user_agent
        self._client.rest_client = _KeepaliveRest(configuration)
        self._dynamic = DynamicClient(self._client)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._client.close()
        except TimeoutError:
            log.warning("the connection to the API server would not close; it is left behind")

    # ------------------------------------------------------------------------------------------------------- reading

    async def get(self, resource: ResourceType, name: str, *, namespace: str | None = None) -> Object | None:
        """The most recent state; None only when the server says that this very object does not exist.

        A 404 that speaks of anything else (the kind is not served here) is `Rejected`: no data is not an empty answer.
        """
        try:
            return await self.request_json("GET", resource.path(namespace=namespace, name=name))
        except Rejected as refusal:
            if refusal.not_found and refusal.reason == "NotFound" and refusal.subject == name:
                return None
            raise

    async def list(
        self,
        resource: ResourceType,
        *,
        namespace: str | None = None,
        name: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> ObjectList:
        """The most recent state of all matching objects. `name` selects at most one, as a watch of it would."""
        answer = await self.request_json(
            "GET",
            resource.path(namespace=namespace),
            query=selectors(name=name, label_selector=label_selector, field_selector=field_selector),
        )
        items: Sequence[Object] = answer.get("items") or []
        for item in items:  # the server leaves these two out of list items
            item.setdefault("apiVersion", resource.api_version)
            item.setdefault("kind", resource.kind)
        return ObjectList(items=tuple(items), resource_version=str(answer["metadata"]["resourceVersion"]))

    async def list_metadata(
        self, resource: ResourceType, *, namespace: str | None = None, label_selector: str | None = None
    ) -> ObjectList:
        """`list` without what makes objects large: items have `metadata` alone, and in it no `managedFields`. Comes in pages of
        one moment, so that a namespace of many thousand pods is never held whole as it came."""
        items: list[Object] = []
        query = [*selectors(name=None, label_selector=label_selector, field_selector=None), ("limit", str(METADATA_PAGE))]
        more: list[tuple[str, str]] = []
        while True:
            answer = await self.request_json(
                "GET", resource.path(namespace=namespace), query=[*query, *more], accept=METADATA_ALONE
            )
            for item in answer.get("items") or ():
                item["metadata"].pop("managedFields", None)
                items.append(item)
            token = answer["metadata"].get("continue")
            if not token:
                return ObjectList(items=tuple(items), resource_version=str(answer["metadata"]["resourceVersion"]))
            more = [("continue", token)]

    async def served(self, api_version: str) -> frozenset[str]:
        """The plurals that discovery knows of a group's version ("v1", "apps/v1"); none when it does not know the version."""
        prefix = "/apis" if "/" in api_version else "/api"
        try:
            answer = await self.request_json("GET", f"{prefix}/{api_version}")
        except Rejected as refusal:
            if refusal.not_found:
                return frozenset()
            raise
        return frozenset(row["name"] for row in answer.get("resources") or ())

    # ------------------------------------------------------------------------------------------------------- writing
    # Each may raise Rejected or OutcomeUnknown. A cancelled write is as unknown as one that timed out.

    async def create(
        self,
        manifest: Mapping[str, Any],
        *,
        field_manager: str | None = None,
        resource: ResourceType | None = None,
    ) -> Object:
        """POST. An object of that name is a Rejected with `conflict`."""
        kind = resource or resource_of(manifest)
        return await self.request_json(
            "POST",
            kind.path(namespace=_namespace_of(kind, manifest)),
            query=[] if field_manager is None else [("fieldManager", field_manager)],
            body=manifest,
        )

    async def apply(
        self,
        manifest: Mapping[str, Any],
        *,
        field_manager: str,
        force: bool = True,
        subresource: str | None = None,
        resource: ResourceType | None = None,
    ) -> Object:
        """Server-side apply. `metadata.uid` and `metadata.resourceVersion` in the manifest bind the write to that
        object and version: a mismatch is a Rejected with `conflict`; with a uid the object is never created anew."""
        kind = resource or resource_of(manifest)
        return await self.request_json(
            "PATCH",
            kind.path(namespace=_namespace_of(kind, manifest), name=manifest["metadata"]["name"], subresource=subresource),
            query=[("fieldManager", field_manager), ("force", "true" if force else "false")],
            body=manifest,
            content_type=APPLY,
        )

    async def patch(
        self,
        resource: ResourceType,
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        namespace: str | None = None,
        field_manager: str,
        subresource: str | None = None,
    ) -> Object:
        """A JSON merge patch (a mapping) or a JSON patch (a sequence): for what server-side apply cannot say, such as
        taking an entry out of a list that somebody else owns. `metadata.resourceVersion` in a merge patch binds it."""
        return await self.request_json(
            "PATCH",
            resource.path(namespace=namespace, name=name, subresource=subresource),
            query=[("fieldManager", field_manager)],
            body=patch,
            content_type=MERGE_PATCH if isinstance(patch, Mapping) else JSON_PATCH,
        )

    async def delete(
        self,
        resource: ResourceType,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str = "Background",
    ) -> bool:
        """True when deletion began, False when there was no such object. With `uid` or `resource_version` a mismatch is
        a Rejected with `conflict`."""
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        try:
            await self.request_json(
                "DELETE",
                resource.path(namespace=namespace, name=name),
                body={
                    "apiVersion": "v1",
                    "kind": "DeleteOptions",
                    "propagationPolicy": propagation,
                    "preconditions": {key: value for key, value in preconditions.items() if value is not None},
                },
            )
        except Rejected as refusal:
            if refusal.not_found and refusal.reason == "NotFound" and refusal.subject == name:
                return False
            raise
        return True

    # --------------------------------------------------------------------------------------------------------- below

    async def request_json(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        """One request, also for paths that have no method here (token requests, evictions).

        Raises Rejected, OutcomeUnknown."""
        try:
            # Not aiohttp's own total, which swallows a cancellation that comes in the same turn.
            async with asyncio.timeout(self._request_timeout_s):
                response = await self.open(
                    method, path, query=query, body=body, content_type=content_type, accept=accept, limits=UNLIMITED
                )
                try:
                    answer: Object = json.loads(await response.read())
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    response.close()
                    raise OutcomeUnknown(f"{method} {path}: the answer broke off ({_why(error)})") from error
        except TimeoutError as error:
            raise OutcomeUnknown(f"{method} {path}: no answer (timed out)") from error
        return answer

    async def open(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """The 2xx response, unread: the caller reads and closes it. Raises Rejected, OutcomeUnknown."""
        try:
            response: aiohttp.ClientResponse = await self._dynamic.request(
                method,
                path,
                body=body,
                query_params=list(query),
                content_type=content_type,
                header_params={"Accept": accept},
                serialize=False,
                _request_timeout=limits,
            )
        except ApiException as error:
            raise _failure_from(error) from None  # the official exception repeats headers and its own traceback
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise OutcomeUnknown(f"{method} {path}: no answer ({_why(error)})") from error
        return response


def _failure_from(error: Any) -> ApiError:
    body = error.body if error.body is not None else getattr(error, "data", None)
    return failure_of(status=int(error.status or 0), http_reason=error.reason, body=body)


def _why(error: Exception) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "timed out"
    return " ".join(str(error).split()) or type(error).__name__


def _namespace_of(resource: ResourceType, manifest: Mapping[str, Any]) -> str | None:
    if not resource.namespaced:
        return None
    namespace = manifest.get("metadata", {}).get("namespace")
    if not namespace:
        raise ValueError(f"{resource.kind} {manifest.get('metadata', {}).get('name')} needs metadata.namespace")
    return str(namespace)


def selectors(*, name: str | None, label_selector: str | None, field_selector: str | None) -> Sequence[tuple[str, str]]:
    if name is not None:
        by_name = f"metadata.name={name}"
        field_selector = by_name if field_selector is None else f"{by_name},{field_selector}"
    query = (("labelSelector", label_selector), ("fieldSelector", field_selector))
    return [(key, value) for key, value in query if value is not None]
