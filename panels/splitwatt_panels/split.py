"""The set *Split*: whether prompts are read by one pool and answers written by the other. Absent is not zero: engines that
show no such counter draw no line."""

from __future__ import annotations

from typing import Final

from splitwatt_core import names

from splitwatt_panels.model import Drawing, Panel, PanelRow, PanelSet, PanelStep, Query, Tone, Unit
from splitwatt_panels.promql import CLUSTER, JOB, NAMESPACE, cluster, per_second

_WHOSE: Final = ("namespace", "cluster")
_OF: Final = "{{namespace}}/{{cluster}}"
_BY_SOURCE: Final = f"{names.M_VLLM_PROMPT_BY_SOURCE}_total"
_KV_FETCH: Final = "vllm:num_requests_kv_fetch_by_stage"
_DECODE: Final = 'role="decode"'
_COMPUTED: Final = 'source="local_compute"'

_TRANSFERS: Final = PanelRow(
    "Transfers",
    (
        Panel(
            "KV caches moved",
            Unit.PER_SECOND,
            "Transfers of KV caches per second, as the connector counts them.",
            "About one a request. No line: no engine with a connector is scraped; a line at 0 beside traffic: nothing is split.",
            (Query(per_second(cluster(f"{names.M_VLLM_NIXL_BYTES}_count"), *_WHOSE), _OF),),
        ),
        Panel(
            "Bytes moved",
            Unit.BYTES_PER_SECOND,
            "Bytes of KV caches that moved per second.",
            "Against what the network carries: near its end TTFT grows.",
            (Query(per_second(cluster(f"{names.M_VLLM_NIXL_BYTES}_sum"), *_WHOSE), _OF),),
        ),
        Panel(
            "Failed transfers",
            Unit.PER_SECOND,
            "Transfers that failed per second, handshakes and notifications among them.",
            "Each is a prompt that decode reads again, or a request that is lost.",
            (Query(per_second(cluster(f"{names.M_VLLM_NIXL_FAILED}_total"), *_WHOSE), _OF),),
            thresholds=(PanelStep(0.001, Tone.BAD),),
        ),
        Panel(
            "Requests that fetch a KV cache",
            Unit.COUNT,
            "Requests in decode engines whose KV cache is still on its way, by stage.",
            "A stage that fills up is where transfers wait.",
            (Query(f"sum by (namespace, cluster, stage) ({cluster(_KV_FETCH, _DECODE)})", f"{_OF} {{{{stage}}}}"),),
        ),
    ),
)

_PROMPTS: Final = PanelRow(
    "Prompts in decode engines",
    (
        Panel(
            "Share that decode computed itself",
            Unit.SHARE,
            "Of the prompt tokens in decode engines, the share that they computed instead of getting it.",
            "The measure of a split: near 0 it works, near 100 % there is none, though every answer is right. Without prompts "
            "there is no share, and no line.",
            (
                Query(
                    f"{per_second(cluster(_BY_SOURCE, _DECODE, _COMPUTED), *_WHOSE)} / "
                    f"({per_second(cluster(_BY_SOURCE, _DECODE), *_WHOSE)} > 0)",
                    _OF,
                ),
            ),
            thresholds=(PanelStep(0.05, Tone.WARNING), PanelStep(0.5, Tone.BAD)),
        ),
        Panel(
            "Prompt tokens by source",
            Unit.PER_SECOND,
            "Prompt tokens in decode engines per second: computed there, found in their cache, or brought by transfer.",
            "The three parts behind the share.",
            (Query(per_second(cluster(_BY_SOURCE, _DECODE), *_WHOSE, "source"), f"{_OF} {{{{source}}}}"),),
        ),
        Panel(
            "Proof that KV caches move",
            Unit.COUNT,
            "The condition KVTransferVerified: a probe of the operator's own, and the engines' counters around it.",
            "No: its reason says what is wrong (docs/router.md). A gap is Unknown, where there is nothing to prove or no "
            "verdict.",
            (
                Query(
                    cluster(names.M_CLUSTER_CONDITION, 'condition="KVTransferVerified"'),
                    _OF,
                    unmade="the lab's engines have no address to send a probe to; `make e2e` has engines that do",
                ),
            ),
            Drawing.STATES,
            base=Tone.BAD,
            thresholds=(PanelStep(1, Tone.GOOD),),
            states=((0, "No"), (1, "Yes")),
        ),
    ),
)

SPLIT: Final = PanelSet(
    "split",
    "Split",
    "Do KV caches move, or does decode read every prompt itself?",
    (JOB, NAMESPACE, CLUSTER),
    (_TRANSFERS, _PROMPTS),
)
