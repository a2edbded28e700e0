"""Selectors with the variables of a dashboard, and the expressions that several panels share."""

from __future__ import annotations

from typing import Final

from splitwatt_core import names

from splitwatt_panels.model import Variable

RANGE: Final = "$__rate_interval"
"""Never a fixed window: it follows the scrape interval, so that a rate has two samples to stand on."""

PHASE_OF_ROLE: Final = 'role=~"(?i:$role)"'
"""For agents' metrics: grants say Prefill where engines say prefill."""

JOB: Final = Variable("job", "Scrape job", "up", "job")
NAMESPACE: Final = Variable("namespace", "Namespace", names.M_VLLM_RUNNING, names.L_NAMESPACE)
CLUSTER: Final = Variable("cluster", "InferenceCluster", names.M_VLLM_RUNNING, names.L_CLUSTER)
ROLE: Final = Variable("role", "Role", names.M_VLLM_RUNNING, names.L_ROLE)
BUDGET: Final = Variable("budget", "PowerBudget", names.M_BUDGET_LIMIT_WATTS, names.L_BUDGET)
NODE: Final = Variable("node", "Node", names.M_AGENT_WATCH_LIVE, names.L_NODE)


def operator(metric: str, *more: str) -> str:
    """A metric of the operator as a whole; `more`: label matchers."""
    return _selector(metric, 'job=~"$job"', *more)


def budget(metric: str, *more: str) -> str:
    return operator(metric, 'budget=~"$budget"', *more)


def agent(metric: str, *more: str) -> str:
    return operator(metric, 'node=~"$node"', *more)


def cluster(metric: str, *more: str) -> str:
    """Of one InferenceCluster: said by the operator or by an engine."""
    return operator(metric, 'namespace=~"$namespace"', 'cluster=~"$cluster"', *more)


def engine(metric: str, *more: str) -> str:
    return cluster(metric, 'role=~"$role"', *more)


def rate(selector: str) -> str:
    return f"rate({selector}[{RANGE}])"


def p99(metric: str, by: tuple[str, ...], *more: str) -> str:
    """Of a histogram of engines, in seconds."""
    return f"histogram_quantile(0.99, sum by ({', '.join((*by, 'le'))}) ({rate(engine(f'{metric}_bucket', *more))}))"


def per_second(selector: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) ({rate(selector)})" if by else f"sum({rate(selector)})"


def _selector(metric: str, *matchers: str) -> str:
    return f"{metric}{{{', '.join(matchers)}}}"
