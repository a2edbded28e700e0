"""What can become of a request: done, refused, or unknown. Nothing in between, for the ledger's sake.

A write whose outcome is unknown may have landed, or may land later, and stays charged (docs/protocol.md, R6); a refusal proves
that nothing was stored. So a failure counts as a refusal only when the API server itself said so with a status that it
gives before storing anything. All else (timeouts, broken connections, 429, 5xx) is unknown.
"""

from __future__ import annotations

import json
from typing import Final

REFUSALS: Final = frozenset({400, 401, 403, 404, 405, 406, 409, 410, 413, 415, 422})
"""HTTP statuses by which an API server refuses a request without having stored anything."""
MAX_SENTENCE_CHARS: Final = 600


class ApiError(Exception):
    """Any request that did not end with the object. `str()` is one sentence fit for a log line or a condition."""


class ConfigurationError(ApiError):
    """There is no usable way to an API server; the sentence says what to change."""


class Rejected(ApiError):  # noqa: N818 - an outcome, named as one
    """The API server refused: nothing was stored.

    `status` is the HTTP status, `reason` Kubernetes' one-word reason ("Conflict"), `message` the server's own sentence,
    `subject` the name of the object that the server spoke of ("" when it named none).
    """

    def __init__(self, *, status: int, reason: str, message: str, subject: str = "") -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.subject = subject

    @property
    def conflict(self) -> bool:
        """The object is not the one, or not the version, that the request was made for (or it exists already)."""
        return self.status == 409

    @property
    def not_found(self) -> bool:
        return self.status == 404


class OutcomeUnknown(ApiError):  # noqa: N818 - an outcome, named as one
    """No trustworthy answer: a write may have been stored or may still be. For a read it means: nothing learnt."""


def failure_of(*, status: int, http_reason: str | None, body: bytes | str | None) -> ApiError:
    """The failure behind a non-2xx answer. `body` may be a Kubernetes Status object or any text (a proxy's page)."""
    reason, message, subject = http_reason or "", "", ""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else (body or "")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and answer.get("kind") == "Status":
        reason = answer.get("reason") or reason
        message = answer.get("message") or ""
        subject = (answer.get("details") or {}).get("name") or ""
    message = (message or " ".join(text.split()) or "no explanation was given")[:MAX_SENTENCE_CHARS]
    if status in REFUSALS:
        return Rejected(status=status, reason=reason, message=message, subject=subject)
    return OutcomeUnknown(f"the API server answered {status} {reason}: {message}")
