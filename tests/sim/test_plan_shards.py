"""A sweep in parts gives the plan of a sweep in one piece, to the last bit; parts of something else are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_cli.main import main
from splitwatt_sim.plan.errors import PlanError
from splitwatt_sim.plan.options import MODEL_2026, LatencySlo
from splitwatt_sim.plan.search import Limits
from splitwatt_sim.plan.shards import Shard, ShardError, code, fingerprint, merged, read_shard, write_shard
from splitwatt_sim.plan.sweep import Item, Record, Search, items, record, records, result
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.traces.resample import generated

FILES = ("plan.json", "plan.png", "plan.yaml", "profiles.yaml")
ASKED = ["--servers", "3", "--seconds", "20", "--step", "20", "--gpus", "H100"]
SEARCH = Search(
    model=MODEL_2026,
    gpus=("H100",),
    slo=LatencySlo(2_000.0, 100.0),
    limits=Limits(servers=2),
    rate_rps=None,
    sizes=generated(requests_per_s=10.0, seconds=60.0, seed=3),
    seconds=20.0,
    seed=1,
    step_rps=20.0,
)
WHOLE = items(SEARCH)
RUN = fingerprint(SEARCH)


def blank(shard: Shard) -> list[Record]:
    return [{"item": item.number, "found": None} for item in shard.share(WHOLE)]


def filled(folder: Path, of: int, *, without: tuple[int, ...] = ()) -> Path:
    for number in set(range(of)) - set(without):
        write_shard(folder, Shard(number, of), RUN, blank(Shard(number, of)))
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_equal_searches_have_equal_items_numbered_from_0() -> None:
    again = items(replace(SEARCH))
    assert [(i.number, str(i.servers)) for i in again] == [(n, str(WHOLE[n].servers)) for n in range(len(WHOLE))]
    assert len({str(item.servers) for item in WHOLE}) == len(WHOLE) == 4 + 4 * 2


@given(of=st.integers(1, len(WHOLE)))
def test_shards_share_all_items_and_none_twice(of: int) -> None:
    shares = [[item.number for item in Shard(number, of).share(WHOLE)] for number in range(of)]
    assert sorted(number for share in shares for number in share) == list(range(len(WHOLE)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_shards_than_items_are_refused() -> None:
    with pytest.raises(ShardError, match="the sweep has 12 items, one for each pair of servers: make at most so many shards"):
        Shard(0, 13).share(WHOLE)


def test_a_record_goes_through_json_unchanged_and_says_what_the_run_measured() -> None:
    item = next(item for item in WHOLE if item.servers.decode is not None and item.search() is not None)
    found, written = item.search(), record(item)
    assert found is not None
    kept = result(item, json.loads(json.dumps(written)))
    assert kept is not None and json.loads(json.dumps(written)) == written
    assert (kept.design, kept.rate_rps, kept.percentiles) == (found.design, found.rate_rps, found.run.latencies.percentiles())
    assert kept.joules_per_token == found.run.joules_per_token
    assert kept.drawn_w == sum(found.run.energy_j.values()) / found.run.ends_s


def test_processes_change_nothing_and_keep_the_order() -> None:
    some = WHOLE[3:7]
    assert list(records(some, processes=2)) == list(records(some, processes=1)) == [record(item) for item in some]


def test_merged_shards_give_the_plan_of_a_local_search_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = ["--check", "2", "--name", "chat"]
    assert main(["plan", *ASKED, *rest, "--jobs", "2", "--out", str(tmp_path / "local")]) == 0
    local = capsys.readouterr().out.removeprefix("compiling the event loop, once: about half a minute\n")
    for number in (2, 0, 1):
        assert main(["plan", *ASKED, "--shard", f"{number}/3", "--shards-dir", str(tmp_path / "shards"), "--jobs", "1"]) == 0
    assert "shard 1 of 3: 4 of 12 pairs of servers" in capsys.readouterr().out
    assert main(["plan", *ASKED, *rest, "--merge", str(tmp_path / "shards"), "--out", str(tmp_path / "merged")]) == 0
    merged_says = capsys.readouterr().out.replace("/merged", "/local")
    assert local == "".join(f"searched {n} of 12 pairs of servers\n" for n in range(1, 13)) + merged_says
    for name in FILES:
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [f"shard-{n}-of-3.json" for n in range(3)]


def test_a_shard_that_is_there_is_not_searched_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ["plan", *ASKED, "--shard", "5/6", "--shards-dir", str(tmp_path)]
    assert main([*one, "--jobs", "1"]) == 0

    def never(self: Item) -> None:
        raise AssertionError(self)

    monkeypatch.setattr(Item, "search", never)
    assert main(one) == 0
    assert "shard-5-of-6.json is there already: nothing to search" in " ".join(capsys.readouterr().out.split())
    assert "made with --seed 1, not 2; remove it" in refused(capsys, *one[1:], "--seed", "2")


def test_all_shards_give_every_record_in_order(tmp_path: Path) -> None:
    assert [r["item"] for r in merged(filled(tmp_path, 5), RUN, WHOLE)] == list(range(12))


@pytest.mark.parametrize(
    ("without", "says"),
    [
        ((2,), "lacks shard 2 of 4: run --shard 2/4 --shards-dir"),
        ((0, 3), "lacks shard 0, 3 of 4: run --shard 0/4 --shards-dir .* and so on"),
        ((0, 1, 2, 3), r"holds no shard; run --shard 0/N --shards-dir .* to --shard N-1/N first"),
    ],
)
def test_missing_shards_are_named(tmp_path: Path, without: tuple[int, ...], says: str) -> None:
    tmp_path.mkdir(exist_ok=True)
    with pytest.raises(ShardError, match=says):
        merged(filled(tmp_path, 4, without=without), RUN, WHOLE)


def test_two_sets_of_shards_are_not_mixed(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    with pytest.raises(ShardError, match="mixes shards of 2 and of 4; keep one of these sets"):
        merged(filled(tmp_path, 4), RUN, WHOLE)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (replace(SEARCH, seed=2), "made with --seed 2, not 1"),
        (replace(SEARCH, limits=Limits(servers=3)), "made with --servers 3, not 2"),
        (replace(SEARCH, limits=Limits(servers=2, charge_w=9e4)), "made with --watts 90000, not left out"),
        (replace(SEARCH, rate_rps=20.0), "made with --rate 20, not left out"),
        (replace(SEARCH, slo=LatencySlo(2_000.0, 90.0)), "made with --tbt-p99-ms 90, not 100"),
        (replace(SEARCH, slo=LatencySlo(2_000.0, 100.0, 0.03)), "made with --margin 3, not 0"),
        (replace(SEARCH, usd_per_hour={"H100": 9.0}), "made with --price H100=9.0, not left out"),
        (replace(SEARCH, step_rps=10.0), "made with --step 10, not 20"),
        (replace(SEARCH, sizes=generated(requests_per_s=10.0, seconds=60.0, seed=4)), "made with another trace"),
    ],
)  # fmt: skip
def test_a_shard_of_another_question_is_refused_with_what_differs(tmp_path: Path, other: Search, says: str) -> None:
    filled(tmp_path, 3)
    write_shard(tmp_path, Shard(1, 3), fingerprint(other), blank(Shard(1, 3)))
    with pytest.raises(ShardError, match=rf"shard-1-of-3\.json is of another run, {says}; remove it, or give the options"):
        merged(tmp_path, RUN, WHOLE)


def test_other_profiles_and_other_code_are_refused(tmp_path: Path) -> None:
    others = {"other profiles": replace(RUN, profiles="0"), "another version of the code": replace(RUN, code="0")}
    for says, changed in others.items():
        path = write_shard(tmp_path, Shard(0, 2), changed, blank(Shard(0, 2)))
        with pytest.raises(ShardError, match=f"made with {says}; remove it"):
            read_shard(path, RUN, WHOLE)


def test_the_code_is_all_of_core_and_simulator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not only what is written today: a file more, or a byte more, is another version."""
    for package in ("splitwatt_core", "splitwatt_truth", "splitwatt_sim"):
        (tmp_path / package / "deep").mkdir(parents=True)
        (tmp_path / package / "deep" / "a.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr("splitwatt_sim.plan.shards.files", lambda package: tmp_path / package)
    seen = [code.__wrapped__()]
    (tmp_path / "splitwatt_core" / "deep" / "a.py").write_text("x = 2\n", encoding="utf-8")
    seen.append(code.__wrapped__())
    (tmp_path / "splitwatt_sim" / "b.json").write_text("{}", encoding="utf-8")
    seen.append(code.__wrapped__())
    (tmp_path / "splitwatt_sim" / "notes.txt").write_text("no code", encoding="utf-8")
    assert len(set(seen)) == 3 and code.__wrapped__() == seen[-1]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"kind": "x"}', '{"kind": 1, "shard": 0, "of": 2, "run": {}, "results": []}']
)
def test_a_file_that_is_no_shard_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "shard-0-of-2.json").write_text(text, encoding="utf-8")
    with pytest.raises(ShardError, match=r"shard-0-of-2\.json is no shard of a plan; remove it, or run that shard again"):
        merged(tmp_path, RUN, WHOLE)


def test_a_renamed_shard_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    (tmp_path / "shard-0-of-2.json").replace(tmp_path / "shard-1-of-2.json")
    with pytest.raises(ShardError, match=r"shard-1-of-2\.json does not hold what its name says"):
        merged(tmp_path, RUN, WHOLE)


def test_a_shard_that_lacks_numbers_is_refused(tmp_path: Path) -> None:
    records = blank(Shard(0, 2))
    records[1]["found"] = {"servers": {"prefill_servers": 1, "decode_servers": 1}, "rate_requests_per_s": 5.0}
    write_shard(tmp_path, Shard(0, 2), RUN, records)
    with pytest.raises(ShardError, match=r"shard-0-of-2\.json lacks what a result needs; remove it"):
        merged(tmp_path, RUN, WHOLE)


FOUND = next(written for written in map(record, WHOLE) if written["found"] is not None)
"""An item's record as it is written."""


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("percentiles_ms", "e2e_ms_p50"), None),
        (("percentiles_ms", "tbt_ms_p99"), float("nan")),
        (("percentiles_ms", "ttft_ms_p99"), "12"),
        (("percentiles_ms",), []),
        (("energy_j", "mixed"), None),
        (("energy_j", "mixed"), float("inf")),
        (("energy_j",), 7),
        (("output_tokens",), 0),
        (("output_tokens",), 12.5),
        (("output_tokens",), True),
        (("ends_s",), 0.0),
        (("rate_requests_per_s",), -5.0),
        pytest.param(("rate_requests_per_s",), 10**400, id="larger than a float"),
        (("servers", "prefill_servers"), 0),
        (("servers", "prefill_servers"), 1e300),
        (("servers",), None),
    ],
)
def test_a_record_of_which_no_plan_can_be_made_is_refused(tmp_path: Path, path: tuple[str, ...], value: object) -> None:
    """`value` None: left out."""
    number = FOUND["item"]
    assert result(WHOLE[number], FOUND) is not None and WHOLE[number].servers.decode is None
    broken = json.loads(json.dumps(FOUND))
    place = broken["found"]
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    records = [broken if r["item"] == number else r for r in blank(Shard(number % 2, 2))]
    write_shard(tmp_path, Shard(number % 2, 2), RUN, records)
    with pytest.raises(ShardError, match=r"lacks what a result needs; remove it, or run that shard again"):
        merged(tmp_path, RUN, WHOLE)


@pytest.mark.parametrize("name", ["shard-00-of-2.json", "shard-0-of-02.json", "shard-\u0660-of-2.json", "shard-0-of-0.json"])
def test_a_name_that_no_shard_is_given_is_not_read(tmp_path: Path, name: str) -> None:
    filled(tmp_path, 2)
    (tmp_path / name).write_text("{", encoding="utf-8")
    assert len(merged(tmp_path, RUN, WHOLE)) == len(WHOLE)


def test_a_shard_beyond_its_set_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    write_shard(tmp_path, Shard(3, 2), RUN, [{"item": n, "found": None} for n in (3, 5, 7, 9, 11)])
    with pytest.raises(ShardError, match=r"shard-3-of-2\.json does not hold what its name says"):
        merged(tmp_path, RUN, WHOLE)


def test_options_that_are_no_mapping_make_no_shard(tmp_path: Path) -> None:
    path = write_shard(tmp_path, Shard(0, 2), RUN, blank(Shard(0, 2)))
    path.write_text(path.read_text().replace('"options": {', '"options": 3, "other": {'), encoding="utf-8")
    with pytest.raises(ShardError, match="is no shard of a plan"):
        merged(tmp_path, RUN, WHOLE)


def test_a_write_that_fails_leaves_the_shard_as_it_was(tmp_path: Path) -> None:
    path = write_shard(tmp_path, Shard(0, 2), RUN, blank(Shard(0, 2)))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_shard(tmp_path, Shard(0, 2), RUN, [{"item": 0, "found": object()}])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert [r["item"] for r in read_shard(path, RUN, WHOLE)] == [0, 2, 4, 6, 8, 10], "and a half file is never taken for one"


@settings(max_examples=30)
@given(seed=st.integers(0, 9), servers=st.integers(1, 9), step=st.floats(0.1, 50), model=st.sampled_from(["H100", "H200"]))
def test_equal_questions_and_only_they_have_equal_fingerprints(seed: int, servers: int, step: float, model: str) -> None:
    asked = replace(SEARCH, seed=seed, limits=Limits(servers=servers), step_rps=step, gpus=(model,))
    assert fingerprint(asked) == fingerprint(replace(asked))
    same = (seed, servers, step, model) == (1, 2, 20.0, "H100")
    assert (fingerprint(asked) == RUN) is same and (fingerprint(asked).short == RUN.short) is same
    assert bool(RUN.differs(fingerprint(asked))) is not same


def test_the_short_name_of_a_run_does_not_hang_on_the_code() -> None:
    assert replace(RUN, code="another").short == RUN.short != replace(RUN, trace="another").short


def test_a_question_without_a_price_or_with_short_lists_is_refused() -> None:
    with pytest.raises(PlanError, match="no price is known of B200: add --price B200=USD, or leave it out"):
        items(replace(SEARCH, gpus=("B200",), limits=Limits(usd_per_hour=100.0), catalogue=Catalogue()))
    with pytest.raises(PlanError, match="lists of 19 s hide queues: give --seconds 20 or more"):
        replace(SEARCH, seconds=19.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shard", "0/2"], "--shard and --shards-dir belong together"),
        (["--shards-dir", "x"], "--shard and --shards-dir belong together"),
        (["--merge", "nowhere"], "cannot read nowhere"),
        (["--shards", "4"], "--shards speaks of a Job: add --on-kubernetes, or leave it out"),
        (["--trace-claim", "pvc"], "--trace-claim speaks of a Job: add --on-kubernetes, or leave it out"),
        (["--shard", "0/99", "--shards-dir", "x"], "the sweep has 12 items"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, *ASKED, *arguments)
