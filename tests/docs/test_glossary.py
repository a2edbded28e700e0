"""The glossary names code, fields and metrics as they are, and a class name means one thing but where it says so."""

from __future__ import annotations

import re
from collections import Counter

from splitwatt_core import names
from support.imports import modules
from support.stops import REPOSITORY, missing, stops_of

GLOSSARY = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
FIELD = re.compile(r"`(?:(?:spec|status|policy|gpus\[\])\.)?([a-z]+(?:[A-Z][a-z]+)+)`")
CLASS = re.compile(r"^class ([A-Z]\w*)", re.MULTILINE)
METRIC = re.compile(r"`(splitwatt_[a-z_]+)`")
NOT_OURS = {"schedulingGates"}


def test_every_name_in_code_is_there() -> None:
    assert len(stops_of(GLOSSARY)) > 50
    assert missing(GLOSSARY) == []


def test_every_field_is_one_of_a_crd_and_every_metric_one_of_ours() -> None:
    schemas = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "crds").glob("*.yaml"))
    fields = set(FIELD.findall(GLOSSARY)) - NOT_OURS
    assert len(fields) > 20
    assert [field for field in sorted(fields) if f" {field}:" not in schemas] == []
    metrics = METRIC.findall(GLOSSARY)
    ours = [value for name, value in vars(names).items() if name.startswith("M_")]
    assert metrics and [metric for metric in metrics if metric not in ours] == []


def test_each_word_is_said_once() -> None:
    words = Counter(re.findall(r"\*\*([^*]+)\*\*(?=[^|]*\|)", GLOSSARY))
    assert len(words) > 40
    assert [word for word, times in words.items() if times > 1] == []


def test_a_class_name_means_one_thing() -> None:
    on_purpose = set(re.findall(r"`([A-Z]\w+)`", GLOSSARY[GLOSSARY.index("## Names that stand twice") :]))
    # What runs inside a training job imports nothing of ours, and nobody reads both in one breath.
    ours = [file for module, file in modules().items() if not module.startswith("splitwatt_prune")]
    found = Counter(name for file in ours for name in CLASS.findall(file.read_text(encoding="utf-8")))
    assert len(found) > 300
    twice = {name for name, times in found.items() if times > 1}
    assert twice == on_purpose, "give the newcomer a name of its own, or say in docs/glossary.md why it stands twice"
