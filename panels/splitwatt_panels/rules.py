"""Alerts as a plain file of Prometheus rules, which promtool checks and any Prometheus loads."""

from __future__ import annotations

from typing import Any

import yaml

from splitwatt_panels.alerts import ALERTS
from splitwatt_panels.model import Alert


def rules_yaml() -> str:
    groups = {"groups": [{"name": "splitwatt", "rules": [_rule(alert) for alert in ALERTS]}]}
    return yaml.safe_dump(groups, sort_keys=False, width=120, allow_unicode=True)


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": f"{alert.for_s}s",
        "labels": {"severity": alert.severity.value},
        "annotations": {"summary": alert.summary, "description": alert.description, "runbook_url": alert.runbook},
    }
