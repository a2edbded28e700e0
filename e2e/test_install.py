"""From nothing to kept budgets, with the README's own words."""

from __future__ import annotations

from ground.site import Site

SETTLED_S = 60.0
LIMIT_W = 7000
"""Of the rack, in which one node's GPUs then get (7000 - 3400) / 1.04 / 8 = 432 W each."""


def capped_w(site: Site, *, limit_w: int) -> bool:
    """The truth of the GPUs, counted as the budget of the README declares: 4 % losses, 2800 W per node, 600 W fixed."""
    node = site.cluster.nodes()[0]
    enforced = site.enforced_w()[node]
    return sum(enforced) * 1.04 + 2800 + 600 <= limit_w and max(enforced) < 700


def test_the_readme_installs_and_a_first_budget_is_kept(site: Site) -> None:
    site.install()
    budgets = site.first_budget()
    for name in budgets:
        site.await_ready("pb", name, timeout_s=SETTLED_S)
    assert not capped_w(site, limit_w=LIMIT_W), "a limit that binds nothing shows nothing"
    site.cluster.kubectl("patch", "pb", "rack-a1", "--type=merge", "-p", f'{{"spec":{{"limitWatts":{LIMIT_W}}}}}')
    took_s = site.await_("caps within the lowered limit", lambda: capped_w(site, limit_w=LIMIT_W), timeout_s=SETTLED_S)
    print(f"caps within {LIMIT_W} W after {took_s:.1f} s")  # noqa: T201
    assert all(
        pod["status"]["containerStatuses"][0]["restartCount"] == 0 for pod in [*site.pods("operator"), *site.pods("agent")]
    )
