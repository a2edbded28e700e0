"""From nothing to kept budgets, with the README's own words. Judged by the GPUs, and by what the kubelet gave to pods."""

from __future__ import annotations

import statistics

from ground import rack, serving
from ground.site import Site
from splitwatt_lab.judge import Judge

SETTLED_S = 60.0
ABOVE_LEAST_W = 900
"""For four GPUs that are held: 225 W above the least for each."""


def test_the_readme_installs_and_a_first_budget_is_kept(site: Site) -> None:
    defaults = [rack.DEFAULT_W] * rack.GPUS
    assert all(caps == defaults for caps in site.enforced_w().values()), "nobody has set a cap yet"
    site.install()
    assert all(caps == defaults for caps in site.enforced_w().values()), "without a budget nothing is set"
    site.first_budget()
    limit_w = site.get("pb", rack.NAME)["spec"]["limitWatts"]
    took_s = site.await_(
        "each GPU below its default, and the rack below its limit",
        lambda: rack.may_draw_w(site) <= limit_w and max(max(caps) for caps in site.enforced_w().values()) < rack.DEFAULT_W,
        timeout_s=SETTLED_S,
    )
    print(f"every cap is enforced {took_s:.1f} s after the budgets were Ready")
    pods = [*site.pods("operator"), *site.pods("agent")]
    assert len(pods) == 1 + len(site.cluster.nodes())
    assert [status["restartCount"] for pod in pods for status in pod["status"]["containerStatuses"]] == [0] * len(pods)


def test_pods_that_the_kubelet_gave_gpus_to_are_capped_by_their_role(installed: Site, judged: Judge) -> None:
    site = installed
    serving.make_namespace(site)
    took_s = serving.serve(site, serving.inference_cluster(site, "chat", prefill=1, decode=1))
    print(f"chat is Ready {took_s:.1f} s after it was applied")
    held = {role: serving.gpus_of(site, "chat", role) for role in ("prefill", "decode")}
    slots = [(node, slot) for role in held.values() for node, gpus in role.items() for slot in gpus]
    assert len(slots) == len(set(slots)) == 4, "two pods hold two GPUs each, and none is held twice"

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
    limit_w = rack.limit_w(site, above_least_w=ABOVE_LEAST_W)
    assert rack.may_draw_w(site) > limit_w, "a limit that binds nothing shows nothing"
    site.limit(rack.NAME, limit_w)
    took_s = site.await_("caps within the lowered limit", lambda: rack.may_draw_w(site) <= limit_w, timeout_s=SETTLED_S)
    print(f"caps within {limit_w} W {took_s:.1f} s after the patch")
