from functools import partial

from medcoss_components.doctor.findings import (
    ERROR,
    OK,
    WARNING,
    Finding,
    Section,
    count,
    describe_section,
    gathered,
    summary_line,
)
from medcoss_components.errors import InputError


def sections(*statuses):
    return [Section("s", tuple(Finding(status, "what", "value") for status in statuses))]


class TestGathered:
    def test_a_failing_check_is_an_error_and_the_others_run(self):
        def _check_one():
            yield Finding(OK, "one", "1")
            raise RuntimeError("SECRET")

        def _check_two():
            raise InputError("path: rule")
            yield

        named = gathered("title", (partial(_check_two),)).findings
        assert [entry.what for entry in named] == ["check two"]
        found = gathered("title", (_check_one, _check_two, lambda: [Finding(OK, "three", "3")])).findings
        assert [(entry.status, entry.what, entry.value) for entry in found] == [
            (OK, "one", "1"),
            (ERROR, "check one", "failed with RuntimeError"),
            (ERROR, "check two", "path: rule"),
            (OK, "three", "3"),
        ]


class TestShown:
    def test_aligned_with_advice_below(self):
        section = Section("Head", (Finding(OK, "a", "fine"), Finding(WARNING, "longer", "bad", "do it")))
        assert describe_section(section) == [
            "Head",
            "  ok       a       fine",
            "  warning  longer  bad",
            "                   -> do it",
        ]

    def test_good_ones_of_a_fold_share_a_line(self):
        found = (
            Finding(OK, "x", "1", fold="packages"),
            Finding(ERROR, "y", "missing", fold="packages"),
            Finding(OK, "z", "", fold="packages"),
        )
        assert describe_section(Section("Head", found))[1:] == [
            "  ok       packages  x 1, z",
            "  error    y         missing",
        ]
        assert Section("Head", found).to_dict()["findings"][0] == {
            "status": OK,
            "what": "x",
            "value": "1",
            "advice": "",
        }

    def test_long_lines_are_wrapped_and_paths_stay_whole(self):
        path = "/data/" + "long-name/" * 20
        lines = describe_section(Section("Head", (Finding(OK, "a", f"{'word ' * 30}{path}"),)))
        assert len(lines) == 4 and lines[-1].strip() == path
        assert max(len(line) for line in lines[:-1]) <= 118

    def test_a_narrow_terminal(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "60")
        lines = describe_section(Section("Head", (Finding(OK, "a", "word " * 40, "advice " * 20),)))
        assert 50 < max(map(len, lines)) <= 60

    def test_an_empty_section_and_value(self):
        assert describe_section(Section("Head", ())) == ["Head"]
        assert describe_section(Section("Head", (Finding(OK, "a", ""),)))[1] == "  ok       a"


class TestSummary:
    def test_verdicts(self):
        assert summary_line(sections(OK, OK)) == "2 ok, 0 warnings, 0 errors: ready"
        assert summary_line(sections(OK, WARNING)) == "1 ok, 1 warning, 0 errors: ready, with remarks"
        assert summary_line(sections(ERROR, WARNING)) == "0 ok, 1 warning, 1 error: not ready: see the errors"
        assert count(sections(OK, ERROR, ERROR), ERROR) == 2
