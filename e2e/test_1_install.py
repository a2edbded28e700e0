"""From nothing to kept budgets, with the README's own words. Judged by the GPUs, and by what the kubelet gave to pods."""

from __future__ import annotations

import statistics

from ground import serving
from ground.site import Site

SETTLED_S = 60.0
LIMIT_W = 7000
"""Of rack a1, in which one node's GPUs then get (7000 - 3400) / 1.04 / 8 = 432 W each, on average."""
DEFAULT_W = 700


def capped_w(site: Site, *, rack: str = "a1") -> float:
    """What the rack may draw by the limits that its GPUs enforce, as the README's budget declares the rest: 4 % losses, 2800 W
    for each node, 600 W fixed."""
    nodes = site.metering.meters.racks[rack]
    return sum(sum(site.enforced_w()[node]) for node in nodes) * 1.04 + 2800 * len(nodes) + 600


def test_the_readme_installs_and_a_first_budget_is_kept(installed: Site) -> None:
    site = installed
    assert capped_w(site) > LIMIT_W, "a limit that binds nothing shows nothing"
    site.limit("rack-a1", LIMIT_W)
    took_s = site.await_("caps within the lowered limit", lambda: capped_w(site) <= LIMIT_W, timeout_s=SETTLED_S)
    print(f"caps within {LIMIT_W} W {took_s:.1f} s after the patch")
    pods = [*site.pods("operator"), *site.pods("agent")]
    assert len(pods) == 1 + len(site.cluster.nodes())
    assert [status["restartCount"] for pod in pods for status in pod["status"]["containerStatuses"]] == [0] * len(pods)


def test_pods_that_the_kubelet_gave_gpus_to_are_capped_by_their_role(installed: Site) -> None:
    site = installed
    serving.make_namespace(site)
    took_s = serving.serve(site, serving.inference_cluster("chat", prefill=1, decode=1))
    print(f"chat is Ready {took_s:.1f} s after it was applied")
    held = {role: serving.gpus_of(site, "chat", role) for role in ("prefill", "decode")}
    slots = [(node, slot) for role in held.values() for node, gpus in role.items() for slot in gpus]
    assert len(set(slots)) == 4, "two pods of two GPUs each hold four, and none twice"

    def mean_w(role: str) -> float:
        return statistics.fmean(site.enforced_w()[node][slot] for node, gpus in held[role].items() for slot in gpus)

    def idle_w() -> float:
        enforced = site.enforced_w()
        return max(w for node, each in enforced.items() for slot, w in enumerate(each) if (node, slot) not in slots)

    site.await_(
        "prefill above decode, and both above GPUs that nobody holds",
        lambda: mean_w("prefill") > mean_w("decode") > idle_w(),
        timeout_s=SETTLED_S,
    )
    assert capped_w(site) <= LIMIT_W
