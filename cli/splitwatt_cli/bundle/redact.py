"""What must not leave the house: values that open doors. Pure.

Two nets. By place: what an object keeps under a name that speaks of a secret, environment variables' values (all of them: a name
says nothing certain), copies of whole manifests in annotations. By form, in every text that is left: bearer tokens, JSON Web
Tokens, passwords in addresses, keys in PEM, and flags or assignments whose name speaks of a secret. Secrets and ConfigMaps
are never asked for in the first place. What is taken out leaves `REDACTED` behind, so that a reader sees that something was
there.
"""

from __future__ import annotations

import re
from typing import Any, Final

REDACTED: Final = "REDACTED"
DROPPED: Final = frozenset({"managedFields", "kubectl.kubernetes.io/last-applied-configuration"})
_SECRET_NAME: Final = re.compile(
    r"(pass(word|wd|phrase)?|secret|token|credential|api[-_]?key|private[-_]?key|access[-_]?key|auth(orization)?|cookie|bearer)",
    re.IGNORECASE,
)
NOT_SECRET: Final = frozenset(
    {
        "secretName", "secretRef", "secretKeyRef", "imagePullSecrets", "automountServiceAccountToken", "serviceAccountToken",
        "tokenExpirationSeconds", "secret",
    }
)  # fmt: skip
"""Names of Kubernetes' own that speak of a secret and hold none: references, lists of references and switches. Below them all
goes on being looked at."""
_FORMS: Final = (
    (re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL), REDACTED),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){1,4}"), REDACTED),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {REDACTED}"),
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s:@\"']*:[^/\s@\"']+@"), rf"\1{REDACTED}@"),
    (re.compile(r"\b(?:hf|sk|ghp|gho|glpat|xox[abp]|AKIA)[-_A-Za-z0-9]{12,}"), REDACTED),
)
_ASSIGNED: Final = re.compile(
    r"(?i)([\w.-]*(?:password|passwd|passphrase|secret|token|credential|api[-_]?key|private[-_]?key|access[-_]?key"
    r"|authorization|cookie)[\w.-]*)([\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&}\"']+)"
)
_PLACE: Final = re.compile(r"(?i)(file|dir|path|name|ref)$")
"""Of a name that says where a secret lies, not what it is."""
_HEADER: Final = re.compile(r"^(--[\w-]*header(?:=|$))(.*)", re.DOTALL)


def redact_text(text: str) -> str:
    for pattern, instead in _FORMS:
        text = pattern.sub(instead, text)
    return _ASSIGNED.sub(lambda m: m[0] if _PLACE.search(m[1]) else f"{m[1]}{m[2]}{REDACTED}", text)


def redact(value: Any) -> Any:
    """An object without what must not leave the house."""
    if isinstance(value, dict):
        return {key: _field(key, below) for key, below in value.items() if key not in DROPPED}
    if isinstance(value, list):
        return [redact(row) for row in value]
    return redact_text(value) if isinstance(value, str) else value


def _field(key: str, value: Any) -> Any:
    if key == "env" and isinstance(value, list):
        return [_variable(row) for row in value]
    if key in ("args", "command") and isinstance(value, list):
        return _arguments(value)
    if isinstance(value, str) and key not in NOT_SECRET and _SECRET_NAME.search(key):
        return REDACTED
    if isinstance(value, (list, dict)) and key not in NOT_SECRET and key in ("data", "stringData", "binaryData"):
        return REDACTED
    return redact(value)


def _variable(row: Any) -> Any:
    """The name stays; a reference to where the value lies is no value."""
    if not isinstance(row, dict):
        return redact(row)
    return {key: REDACTED if key == "value" else redact(below) for key, below in row.items()}


def _arguments(row: list[Any]) -> list[Any]:
    """A flag that speaks of a secret or a header hides its value, behind `=` or in the next word."""
    told: list[Any] = []
    hides_next = False
    for word in row:
        if hides_next and isinstance(word, str) and not word.startswith("-"):
            told.append(REDACTED)
            hides_next = False
            continue
        hides_next = False
        if isinstance(word, str) and word.startswith("-"):
            flag, equals, _ = word.partition("=")
            if (_SECRET_NAME.search(flag) or _HEADER.match(word)) and not _PLACE.search(flag):
                told.append(f"{flag}={REDACTED}" if equals else flag)
                hides_next = not equals
                continue
        told.append(redact(word))
    return told
