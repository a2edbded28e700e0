"""One source of credentials for kopf: the same kubeconfig, or service account, that the rest of the operator uses.

kopf gives up for good when a login returns credentials that it has already seen refused. A service account's token is
rotated, and an API server that has just started may refuse a good one for a moment, so every login reads the source
anew and carries its own expiry, which also makes it differ from the last one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import kopf
from kubernetes.aio.client import Configuration

LOGIN_LIFETIME_S: Final = 1800.0
"""After this the token is read again; kubelet rotates projected tokens well before they end."""
LOGIN_PAUSE_S: Final = 1.0
"""Between two logins, so that refused credentials are not retried in a busy loop."""


@dataclass(slots=True)
class KopfLogin:
    """`login` is the handler. `kubeconfig` None means in-cluster."""

    kubeconfig: Path | None
    _last_s: float = field(default=float("-inf"))

    async def login(self, **_: Any) -> kopf.ConnectionInfo:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._last_s + LOGIN_PAUSE_S - loop.time()))
        self._last_s = loop.time()
        return await self._read()

    async def _read(self) -> kopf.ConnectionInfo:
        config = Configuration()
        if self.kubeconfig is None:
            from kubernetes.aio.config.incluster_config import load_incluster_config  # noqa: PLC0415

            load_incluster_config(client_configuration=config)
        else:
            from kubernetes.aio.config.kube_config import load_kube_config  # noqa: PLC0415

            await load_kube_config(config_file=str(self.kubeconfig), client_configuration=config, persist_config=False)
        scheme, token = await _bearer(config)
        return kopf.ConnectionInfo(
            server=config.host,
            ca_path=config.ssl_ca_cert,
            insecure=not config.verify_ssl,
            username=config.username or None,
            password=config.password or None,
            scheme=scheme,
            token=token,
            certificate_path=config.cert_file,
            private_key_path=config.key_file,
            expiration=datetime.now(UTC) + timedelta(seconds=LOGIN_LIFETIME_S),
        )


async def _bearer(config: Any) -> tuple[str | None, str | None]:
    """The Authorization header of the official client's configuration, split into scheme and token."""
    header = await config.get_api_key_with_prefix("BearerToken") or await config.get_api_key_with_prefix("authorization")
    if not header:
        return None, None
    scheme, _, token = header.partition(" ")
    if not token:
        return None, scheme
    return scheme, token
