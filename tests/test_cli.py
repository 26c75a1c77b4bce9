"""The ``medcoss`` command: help, errors on one line with exit status 1, and what each command calls."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medcoss_components import __version__, cli
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.errors import InputError

BUNDLES = Path(__file__).parents[1] / "bundles"


class TestHelp:
    def test_command_is_installed(self):
        command = Path(sys.executable).with_name("medcoss")
        done = subprocess.run([command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and "Continual multi-modal" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "shown"),
        [
            ([], ("sample", "manifest", "bundles", "benchmark", "report", "doctor")),
            (["sample"], ("fetch",)),
            (["manifest"], ("build", "check", "show", "prepare", "datasets", "pages")),
            (["bundles"], ("build", "verify", "pack")),
            (["benchmark"], ("run", "show")),
            (["report"], ("Output folder of a pre-training",)),
        ],
    )
    def test_every_group(self, arguments, shown, medcoss):
        status, out, _ = medcoss(*arguments, "--help")
        assert status == 0 and all(word in out for word in shown)

    def test_version(self, medcoss):
        assert medcoss("--version") == (0, f"{__version__}\n", "")

    def test_as_a_module(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["medcoss", "--version"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("medcoss_components", run_name="__main__")
        assert stop.value.code in (0, None) and capsys.readouterr().out == f"{__version__}\n"


class TestErrors:
    @pytest.mark.parametrize("arguments", [["manifest", "check", "gone.json"], ["report", "gone"]])
    def test_one_line_and_status_1(self, arguments, medcoss):
        status, _, err = medcoss(*arguments)
        assert status == 1
        assert err.startswith("error: ") and "gone" in err and len(err.splitlines()) == 1

    def test_operating_system_errors_too(self, medcoss, monkeypatch):
        def fail(*arguments, **options):
            raise PermissionError(13, "Permission denied", "sample_data")

        monkeypatch.setattr("medcoss_components.data.sample.fetch_sample", fail)
        status, _, err = medcoss("sample", "fetch")
        assert status == 1 and err == "error: [Errno 13] Permission denied: 'sample_data'\n"

    def test_debug_shows_the_traceback(self, medcoss):
        with pytest.raises(InputError, match="gone.json"):
            medcoss("--debug", "manifest", "check", "gone.json")

    def test_debug_by_the_environment(self, monkeypatch):
        monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
        monkeypatch.setattr(sys, "argv", ["medcoss", "manifest", "check", "gone.json"])
        with pytest.raises(InputError, match="gone.json"):
            cli.main()

    def test_unknown_command(self, medcoss):
        status, _, err = medcoss("fetch")
        assert status == 2 and "No such command" in err


class TestSample:
    def test_passes_its_options(self, medcoss, monkeypatch, tmp_path):
        calls = []

        def fetch(root, *, modalities, cache):
            calls.append((root, modalities, cache))
            return {"xray": root / "xray" / "manifest.json"}

        monkeypatch.setattr("medcoss_components.data.sample.fetch_sample", fetch)
        status, out, _ = medcoss(
            "sample", "fetch", tmp_path, "--modality", "xray", "--modality", "ct", "--cache", "wheels"
        )
        assert status == 0 and calls == [(tmp_path, ["xray", "ct"], Path("wheels"))]
        assert out == f"xray       {tmp_path / 'xray' / 'manifest.json'}\n"

    def test_defaults(self, medcoss, monkeypatch):
        calls = []
        monkeypatch.setattr(
            "medcoss_components.data.sample.fetch_sample", lambda root, **options: calls.append((root, options)) or {}
        )
        assert medcoss("sample", "fetch")[0] == 0
        assert calls == [(Path("sample_data"), {"modalities": None, "cache": None})]

    @pytest.mark.parametrize(("extra", "made"), [([], ["tasks"]), (["--modality", "ct"], ["ct", "tasks"])])
    def test_tasks_alone_or_with_modalities(self, extra, made, medcoss, monkeypatch):
        sample = "medcoss_components.data.sample"
        monkeypatch.setattr(
            f"{sample}.fetch_sample", lambda root, *, modalities, cache: {name: root for name in modalities}
        )
        monkeypatch.setattr(f"{sample}.fetch_tasks", lambda root, names, *, cache: {"tasks": names[0]})
        status, out, _ = medcoss("sample", "fetch", "here", "--task", "ct_liver", *extra)
        assert status == 0 and [line.split()[0] for line in out.splitlines()] == made


class TestManifest:
    def test_good_one(self, medcoss, tmp_path):
        path = synthetic_manifest(tmp_path, "xray", count=4, validation=2)
        status, out, _ = medcoss("manifest", "check", path)
        assert status == 0 and out.splitlines()[-1].startswith(
            f"{path}: xray, 4 training, 2 validation, 0 testing; 0 errors"
        )

    def test_problems_are_listed_and_fail(self, medcoss, tmp_path):
        path = synthetic_manifest(tmp_path, "xray", count=4, defects=["truncated", "missing_file"])
        status, out, err = medcoss("manifest", "check", path)
        assert status == 1 and err == ""
        assert "error: " in out and "training-000" in out and "training-001" in out

    def test_headers_only_does_not_open_files(self, medcoss, tmp_path):
        path = synthetic_manifest(tmp_path, "xray", count=4, defects=["truncated"])
        assert medcoss("manifest", "check", path, "--headers-only")[0] == 0

    def test_files_elsewhere(self, medcoss, tmp_path):
        path = synthetic_manifest(tmp_path / "data", "xray", count=4)
        moved = tmp_path / "manifest.json"
        shutil.move(path, moved)
        assert medcoss("manifest", "check", moved)[0] == 1
        assert medcoss("manifest", "check", moved, "--dataset-dir", tmp_path / "data")[0] == 0


class TestBundles:
    @pytest.fixture
    def root(self, tmp_path):
        """A copy of one bundle."""
        name = "medcoss_ct_pretraining"
        shutil.copytree(BUNDLES / name, tmp_path / "bundles" / name)
        shutil.copy(BUNDLES.parent / "LICENSE", tmp_path)
        return tmp_path / "bundles"

    def test_check_names_what_is_out_of_date_and_build_writes_it(self, medcoss, root):
        medcoss("bundles", "build", "--root", root)
        assert medcoss("bundles", "build", "--root", root) == (0, "bundles are up to date\n", "")
        config = root / "medcoss_ct_pretraining" / "configs" / "train.json"
        config.unlink()
        status, out, err = medcoss("bundles", "build", "--check", "--root", root)
        assert status == 1 and out == f"out of date: {config}\n" and "1 files are out of date" in err
        assert not config.exists()
        assert medcoss("bundles", "build", "medcoss_ct_pretraining", "--root", root)[:2] == (
            0,
            f"written: {config}\n1 files written\n",
        )
        assert medcoss("bundles", "build", "--check", "--root", root)[0] == 0

    def test_unknown_bundle(self, medcoss, root):
        status, _, err = medcoss("bundles", "build", "gone", "--root", root)
        assert status == 1 and "no bundle called gone" in err


def test_report(medcoss, monkeypatch, tmp_path):
    monkeypatch.setattr("medcoss_components.tracking.report.write_report", lambda folder: folder / "REPORT.html")
    monkeypatch.setattr("medcoss_components.tracking.report.summary_table", lambda folder: f"table of {folder.name}")
    status, out, _ = medcoss("report", tmp_path / "demo")
    assert status == 0 and out == f"table of demo\n\nreport: {tmp_path / 'demo' / 'REPORT.html'}\n"
