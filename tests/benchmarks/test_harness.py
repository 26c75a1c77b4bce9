"""The arithmetic of the table, the records and the gate; numbers by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from harness import Options, Row, alternate, main, recorded_ratios, regressions, show, table, timed

SPEED = Row("a", "a step", "s/step", (4.0, 6.0, 10.0), (2.0, 2.0, 4.0), target=3.0)
SHARE = Row("b", "memory", "B", (10e9, 10e9), (5e9, 6e9), target=0.6, kind="share")
LIMIT = Row("c", "import", "s", (), (0.2, 0.4, 0.3), target=1.0, kind="limit")
EXCESS = Row("d", "inertia", "units", (100.0,), (101.0,), target=0.005, kind="excess")


@pytest.mark.parametrize(
    ("row", "ratio", "of_medians", "met"),
    [(SPEED, 2.5, 3.0, False), (SHARE, 0.55, 0.55, True), (LIMIT, 0.3, 0.3, True), (EXCESS, 0.01, 0.01, False)],
)
def test_ratio_is_the_median_of_the_pairs(row, ratio, of_medians, met):
    assert row.ratio == pytest.approx(ratio)
    assert row.ratio_of_medians == pytest.approx(of_medians)
    assert row.met is met


def test_sides_take_turns_and_the_warm_up_does_not_count():
    calls = []

    def side(name):
        def work():
            calls.append(name)
            return float(len(calls))

        return work

    figures = alternate(side("s"), side("o"), pairs=2, warmup=1)
    assert "".join(calls) == "soosso"
    assert figures == ((4.0, 5.0), (3.0, 6.0))


def test_settled_turns_begin_with_a_call_that_does_not_count():
    calls: list[str] = []

    def side(letter):
        def work():
            calls.append(letter)
            return float(len(calls))

        return work

    figures = alternate(side("s"), side("o"), pairs=1, warmup=1, settle=True)
    assert "".join(calls) == "so" + "ooss" and figures == ((6.0,), (4.0,))


def test_each_side_finds_its_own_way_of_memory(monkeypatch):
    from straightforward import allocation

    from medcoss_components.engines import allocation as ours

    order: list[str] = []
    monkeypatch.setattr(allocation, "give_back_freed_memory", lambda: order.append("give back"))
    monkeypatch.setattr(ours, "keep_freed_memory", lambda: order.append("keep"))
    alternate(lambda: order.append("s") or 1.0, lambda: order.append("o") or 1.0, pairs=1, warmup=0)
    assert order == ["give back", "s", "keep", "o"]


def test_freed_memory_can_be_given_back():
    from straightforward.allocation import give_back_freed_memory

    from medcoss_components.engines.allocation import keep_freed_memory

    assert give_back_freed_memory() == keep_freed_memory()  # both where there is glibc, none elsewhere


def test_timed_divides_by_the_units():
    assert 0 < timed(lambda: None, units=1e6)() < 1e-6


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0123, "s/step", "12.3 ms/step"), (2.5e9, "B", "2.50 GB"), (3.0, "s", "3.00 s"), (0.0, "s", "0 s")],
)
def test_figures_for_people(value, unit, text):
    assert show(value, unit) == text


def test_table_names_the_spread_and_the_target():
    lines = table([SPEED, LIMIT, EXCESS]).splitlines()
    assert lines[2] == "| a step | 6.00 s/step | 2.00 s/step | 2.50x | 2.00x - 3.00x | 3.00x | 3 | 3.00x | no |"
    assert lines[3].startswith("| import | - | 300 ms | 300 ms |") and lines[3].endswith("| 1.00 s | yes |")
    assert "+1.00 %" in lines[4]


def test_gate_allows_a_fifth():
    assert not SPEED.regressed(3.1) and SPEED.regressed(3.2)
    assert not SHARE.regressed(0.45) and SHARE.regressed(0.43)
    assert not LIMIT.regressed(0.01) and not EXCESS.regressed(0.01)
    assert replace(EXCESS, ours=(104.0,)).regressed(0.01)
    assert regressions([SPEED, SHARE], {"a": 3.0}) == ["b: nothing is recorded; run with --quick --record first"]
    assert regressions([SPEED], {"a": 9.0}) == ["a: 2.50x, recorded 9.00x"]


def _rows(ratio):
    return {"slow_part": lambda options: Row("slow_part", "a part", "s", (ratio,) * 3, (1.0,) * 3, target=2.0)}


def test_record_and_check(tmp_path, capsys):
    results = ["--results", str(tmp_path)]
    assert main(_rows(4.0), arguments=["--quick", "--record", *results]) == 0
    content = json.loads((tmp_path / "speed.json").read_text())
    row = content["quick"]["rows"]["slow_part"]
    assert row["ratio"] == 4.0 and row["met"] and row["date"] and row["commit"] and "--record" in row["command"]
    assert content["quick"]["machine"]["versions"]["torch"]
    assert main(_rows(3.3), arguments=["--check", *results]) == 0
    assert main(_rows(3.1), arguments=["--check", *results]) == 1
    assert "slow_part: 3.10x, recorded 4.00x" in capsys.readouterr().err


def test_quick_falls_back_on_the_full_record(tmp_path):
    assert main(_rows(5.0), arguments=["--record", "--results", str(tmp_path)]) == 0
    assert recorded_ratios("speed", form="quick", results=tmp_path) == {"slow_part": 5.0}


def test_a_new_machine_starts_the_section_anew(tmp_path, monkeypatch):
    results = ["--results", str(tmp_path), "--record"]
    main({"other": lambda options: Row("other", "o", "s", (1.0,), (1.0,), target=None)}, arguments=results)
    monkeypatch.setattr("harness.machine", lambda: {"cpu": "another"})
    main(_rows(1.0), arguments=results)
    assert list(json.loads((tmp_path / "speed.json").read_text())["full"]["rows"]) == ["slow_part"]


def test_only_picks_rows_by_their_beginning(capsys):
    assert main(_rows(1.0), arguments=["--only", "fast"]) == 2
    assert "rows are slow_part" in capsys.readouterr().err
    assert main(_rows(1.0), arguments=["--only", "slow"]) == 0


def test_pairs_of_the_forms():
    assert Options().pairs_of(full=7) == 7 and Options(quick=True).pairs_of() == 3 and Options(pairs=2).pairs_of() == 2
