"""Who an InferenceCluster is: names of any length the CRD admits, label values, and the one way back."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.clusters import MAX_LABEL_CHARS, ClusterName, LabelOwners, cluster_label

NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", fullmatch=True)
LONG = "a" * 100


def owners(*names: str, created_s: Mapping[str, float] | None = None) -> LabelOwners:
    return LabelOwners({ClusterName("s", name): (created_s or {}).get(name, 0.0) for name in names})


def test_a_label_is_the_name_wherever_it_fits_and_never_changes_between_releases() -> None:
    """Deployments hold it as their selector, which is immutable."""
    assert cluster_label("chat.v2") == "chat.v2"
    assert cluster_label("b" * 63) == "b" * 63
    assert cluster_label(LONG) == "a" * 54 + "-9391a077"
    assert cluster_label("c" * 53 + "." + "c" * 20).startswith("c" * 53 + "-"), "a label value has no dot before its dash"


@given(st.sets(NAMES, min_size=1, max_size=6))
def test_every_name_is_found_again_by_its_label_or_refused_with_a_sentence(names: set[str]) -> None:
    index = owners(*names)
    for name in names:
        label = cluster_label(name)
        assert 0 < len(label) <= MAX_LABEL_CHARS
        assert label[0].isalnum() and label[-1].isalnum()
        cluster = ClusterName("s", name)
        assert (index.of("s", label) == cluster) == (index.refusal(cluster) is None)


def test_of_two_names_with_one_label_the_older_has_it_and_the_younger_is_told() -> None:
    twin = cluster_label(LONG)
    for older, younger in ((LONG, twin), (twin, LONG)):
        index = owners(LONG, twin, created_s={older: 1.0, younger: 2.0})
        assert index.of("s", twin) == ClusterName("s", older)
        assert index.refusal(ClusterName("s", older)) is None
        sentence = index.refusal(ClusterName("s", younger))
        assert sentence is not None
        assert f"older InferenceCluster {older} " in sentence and "another name" in sentence
    elsewhere = LabelOwners({ClusterName("s", LONG): 1.0, ClusterName("t", twin): 2.0})
    assert elsewhere.refusal(ClusterName("t", twin)) is None, "labels are looked up by namespace"


def test_an_unknown_label_is_nobodys() -> None:
    assert owners("chat").of("s", "other") is None
    assert owners("chat").of("t", "chat") is None
