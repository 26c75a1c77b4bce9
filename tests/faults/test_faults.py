"""Bad data, a full disk and damaged files: one clear line that names the file and the rule, nothing half-written, and
the same command goes on afterwards. Run as the command line of a stage bundle."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medcoss_components.data.modalities import get_modality
from medcoss_components.data.store import open_store, prepare_store
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.engines.handlers import LossHistory, NonFiniteGuard, ResumeCheckpoint
from medcoss_components.errors import DiskFullError, InputError
from medcoss_components.files import atomic_folder, atomic_path, check_archive, is_disk_full

STEP = "medcoss_components.engines.pretrainer:Pretrainer._iteration"


@pytest.fixture
def run_stage(tmp_path, write_stage, kill_server) -> Callable[..., SimpleNamespace]:
    """``run_stage(modality, manifest, moment=None, **settings)``: the code and the lines that start with "error: "."""

    def run(modality: str, manifest: Path, *, moment: dict | None = None, **settings) -> SimpleNamespace:
        log = tmp_path / "log.txt"
        log.unlink(missing_ok=True)
        code = kill_server(
            write_stage(tmp_path, modality, manifest, tmp_path / "out", **settings), log=log, moment=moment
        )
        text = log.read_text()
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        return SimpleNamespace(code=code, text=text, errors=errors, out=tmp_path / "out", store=tmp_path / "store")

    return run


def store_of(folder: Path, prefix: str):
    (path,) = (path for path in folder.glob(f"{prefix}-*") if path.is_dir())
    return open_store(path)


class TestBadItems:
    @pytest.mark.parametrize(
        ("modality", "defect", "expected"),
        [
            ("report", "empty_text", ("training-000: the text is empty",)),
            ("xray", "truncated", ("training-000.png", "cannot be read", "truncated")),
            ("xray", "wrong_modality", ("training-000.dcm", "the DICOM modality is 'US', expected CR or DX")),
            ("xray", "missing_file", ("training-000.png: no such file",)),
            ("ct", "truncated", ("training-000.nii.gz", "cannot be read", "truncated")),
            ("ct", "wrong_modality", ("training-000/0000.dcm", "the DICOM modality is 'US', expected CT")),
            ("ct", "missing_file", ("training-000.nii.gz: no such file",)),
            ("ct", "nan", ("training-000.nii.gz", "16 of 131072 voxels are NaN or infinite")),
        ],
    )
    def test_too_many_stop_the_run(self, run_stage, tmp_path, modality, defect, expected) -> None:
        manifest = synthetic_manifest(tmp_path / "data", modality, count=8, validation=1, defects=[defect])
        done = run_stage(modality, manifest)
        assert done.code == 1
        (line,) = done.errors
        for words in ("1 of 8 items are bad", "max_bad_share=0.01", *expected):
            assert words in line
        assert "Traceback" not in done.text
        assert not [path for path in done.store.iterdir() if path.is_dir() and not path.name.startswith((".", "voc"))]
        assert not list(done.out.glob("*.pt"))

    def test_an_unreadable_file(self, run_stage, tmp_path) -> None:
        manifest = synthetic_manifest(tmp_path / "data", "xray", count=8, validation=1)
        path = tmp_path / "data" / "files" / "training-002.png"
        path.unlink()
        path.mkdir()
        done = run_stage("xray", manifest)
        assert done.code == 1 and "files/training-002.png" in done.errors[0]

    def test_a_missing_manifest(self, run_stage, tmp_path) -> None:
        done = run_stage("xray", tmp_path / "nowhere.json")
        assert done.code == 1 and "nowhere.json: no such file" in done.errors[0]

    def test_one_among_many_is_left_out_and_listed(self, run_stage, tmp_path) -> None:
        manifest = synthetic_manifest(tmp_path / "data", "report", count=120, validation=1, defects=["empty_text"])
        done = run_stage("report", manifest, max_epochs=1, batch_size=60, warmup_epochs=0)
        assert done.code == 0, done.text[-3000:]
        store = store_of(done.store, "report-training")
        assert store.report["bad_items"] == [{"id": "training-000", "reason": "the text is empty"}]
        assert len(store) == json.loads((done.out / "metrics.json").read_text())["samples"] == 119
        assert "1 of 120 items" in done.text and str(store.path / "report.json") in done.text

    def test_the_same_in_pictures_up_to_the_share_that_is_set(self, tmp_path) -> None:
        defects = ["truncated", "missing_file", "wrong_modality"]
        manifest = synthetic_manifest(
            tmp_path / "data", "xray", count=300, validation=1, shape=(24, 20), defects=defects
        )
        options = {
            "manifest": manifest,
            "modality": get_modality("xray", input_shape=(3, 16, 32)),
            "workers": 1,
            "progress": False,
        }
        store = prepare_store(store_dir=tmp_path / "store", **options)
        assert [entry["id"] for entry in store.report["bad_items"]] == ["training-000", "training-001", "training-002"]
        assert store.report["bad_share"] == 0.01 and len(store) == 297 and "training-001" not in store.ids
        with pytest.raises(InputError, match=r"3 of 300 items are bad \(share 0.01\), max_bad_share=0.009"):
            prepare_store(store_dir=tmp_path / "other", max_bad_share=0.009, **options)
        assert [path.suffix for path in (tmp_path / "other").glob("[!.]*")] == [".json"]  # the report alone

    def test_one_volume_with_nan_among_many(self, tmp_path) -> None:
        manifest = synthetic_manifest(
            tmp_path / "data", "ct", count=100, validation=1, shape=(16, 24, 20), defects=["nan"]
        )
        modality = get_modality("ct", input_shape=(1, 16, 16, 32))
        store = prepare_store(
            manifest=manifest, modality=modality, store_dir=tmp_path / "store", workers=1, progress=False
        )
        assert [entry["id"] for entry in store.report["bad_items"]] == ["training-000"]
        assert "NaN" in store.report["bad_items"][0]["reason"]
        assert len(store) == 99 and np.isfinite(store.gather(np.arange(99))).all()


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> Path:
    return synthetic_manifest(tmp_path_factory.mktemp("reports"), "report", count=24, validation=2, seed=4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, reports, write_stage, kill_server) -> dict[str, bytes]:
    """What an undisturbed run of the report stage writes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    arguments = write_stage(folder, "report", reports, folder / "out")
    assert kill_server(arguments, log=folder / "log.txt") == 0, (folder / "log.txt").read_text()[-3000:]
    return {name: (folder / "out" / name).read_bytes() for name in ("model.pt", "buffer.json")}


def assert_goes_on(run_stage, reports: Path, undisturbed: dict[str, bytes]) -> None:
    done = run_stage("report", reports)
    assert done.code == 0, done.text[-3000:]
    assert {name: (done.out / name).read_bytes() for name in undisturbed} == undisturbed
    assert not list(done.out.rglob("*.partial*"))


class TestFullDisk:
    @pytest.mark.parametrize(
        ("moment", "place"),
        [
            ({"full": "part-000000.bin", "count": 1}, "store_dir"),
            ({"full": "checkpoint.pt", "count": 3}, "out/checkpoint.pt"),
            ({"limit": 100_000}, "out/checkpoint.pt"),  # a write in the middle of the file fails
            ({"full": "model.pt", "count": 1}, "out/model.pt"),
            ({"full": "stage.json", "count": 3}, "out/stage.json"),
        ],
        ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
    )
    def test_the_message_names_the_file_and_the_run_goes_on(self, run_stage, reports, undisturbed, moment, place):
        done = run_stage("report", reports, moment=moment)
        assert done.code == 1
        assert len(done.errors) == 1 and place in done.errors[0] and "is full" in done.errors[0]
        assert "Traceback" not in done.text and not list(done.out.rglob("*.partial*"))
        assert_goes_on(run_stage, reports, undisturbed)

    def test_the_former_file_stays(self, tmp_path) -> None:
        path = tmp_path / "weights.pt"
        path.write_bytes(b"former")
        with (
            pytest.raises(DiskFullError, match=r"weights.pt: the disk.* is full .*nothing unfinished is used"),
            atomic_path(path) as partial,
        ):
            partial.write_bytes(b"half")
            try:
                raise OSError(28, "No space left on device")
            except OSError as error:
                raise RuntimeError("the writer of torch gave up") from error
        assert path.read_bytes() == b"former" and list(tmp_path.iterdir()) == [path]

    def test_folders_and_other_errors(self, tmp_path) -> None:
        with pytest.raises(DiskFullError, match="buffer: the disk"), atomic_folder(tmp_path / "buffer"):
            raise OSError(122, "Disk quota exceeded")
        with pytest.raises(PermissionError), atomic_path(tmp_path / "file"):
            raise PermissionError(13, "denied")
        assert list(tmp_path.iterdir()) == []
        assert not is_disk_full(None) and not is_disk_full(ValueError("28"))


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_content(path: Path) -> None:
    path.write_bytes(b"no checkpoint at all\n" * 50)


def other_object(path: Path) -> None:
    torch.save({"epoch": 3}, path)


def pickled_code(path: Path) -> None:
    torch.save({"model": signal.Signals.SIGINT}, path)


class TestDamagedFiles:
    def test_checkpoints(self, run_stage, reports, undisturbed) -> None:
        done = run_stage("report", reports, moment={"call": STEP, "count": 8})
        assert done.code == -9
        path = done.out / "checkpoint.pt"
        whole = path.read_bytes()
        for damage in (half, one_byte, other_content, other_object, pickled_code):
            path.write_bytes(whole)
            damage(path)
            refused = run_stage("report", reports)
            assert refused.code == 1, damage.__name__
            assert len(refused.errors) == 1, refused.text[-3000:]
            assert f"{path}: cannot resume from this checkpoint (" in refused.errors[0]
            assert "Delete it to start the stage again" in refused.errors[0]
        path.unlink()
        assert_goes_on(run_stage, reports, undisturbed)

    def test_other_settings_do_not_go_on_from_a_checkpoint(self, run_stage, reports) -> None:
        assert run_stage("report", reports, moment={"call": STEP, "count": 3}).code == -9
        done = run_stage("report", reports, max_epochs=3)
        assert done.code == 1 and "begun with other settings (max_epochs: 2 -> 3)" in done.errors[0]

    def test_weights_stores_and_records(self, run_stage, reports) -> None:
        done = run_stage("report", reports, moment={"rename": "buffer.json", "count": 1, "when": "after"})
        assert done.code == -9
        weights, shard = done.out / "model.pt", store_of(done.store, "report-training").path / "shard-0000.npy"
        for path, damage, words in (
            (weights, one_byte, "damaged since it was written"),
            (shard, half, "bytes expected, found"),
            (done.out / "stage.json", half, "not a JSON file"),
        ):
            whole = path.read_bytes()
            damage(path)
            refused = run_stage("report", reports)
            assert refused.code == 1 and len(refused.errors) == 1, refused.text[-3000:]
            assert str(path) in refused.errors[0] and words in refused.errors[0]
            path.write_bytes(whole)
        assert run_stage("report", reports).code == 0

    def test_archives_are_compared_with_their_checksums(self, tmp_path) -> None:
        path = tmp_path / "weights.pt"
        torch.save({"a": torch.arange(1000)}, path)
        check_archive(path)
        one_byte(path)
        with pytest.raises(InputError, match=r"weights.pt: damaged since it was written \(.*data/0"):
            check_archive(path)
        other_content(path)
        check_archive(path)  # no archive: not its business


class TestInterrupt:
    """Ctrl-C lets the step end; the run that goes on is the uninterrupted one."""

    def start(self, make_trainer, fake_source, path: Path):
        trainer = make_trainer(fake_source("xray", 10))
        guard, history = NonFiniteGuard(), LossHistory(interval=2)
        checkpoint = ResumeCheckpoint(path=path, seconds=1e9, guard=guard, parts={"history": history})
        for handler in (guard, history, checkpoint):
            handler.attach(trainer)
        return trainer, checkpoint, history

    def test_in_the_middle_of_a_step(self, make_trainer, fake_source, tmp_path, monkeypatch) -> None:
        whole, _, losses = self.start(make_trainer, fake_source, tmp_path / "none.pt")
        whole.run()
        trainer, checkpoint, _ = self.start(make_trainer, fake_source, tmp_path / "checkpoint.pt")
        update = trainer._update
        monkeypatch.setattr(
            trainer, "_update", lambda: (trainer.state.iteration == 4 and os.kill(os.getpid(), signal.SIGINT), update())
        )
        answer = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        assert signal.getsignal(signal.SIGINT) is answer
        resumed, checkpoint, history = self.start(make_trainer, fake_source, tmp_path / "checkpoint.pt")
        assert checkpoint.load(resumed) and resumed.state.iteration == 4
        resumed.run()
        assert signal.getsignal(signal.SIGINT) is answer
        for name, value in whole.model.state_dict().items():
            assert resumed.model.state_dict()[name].equal(value), name
        assert [row[:5] for row in history.rows] == [row[:5] for row in losses.rows]

    def test_other_errors_write_no_checkpoint(self, make_trainer, fake_source, tmp_path, monkeypatch) -> None:
        trainer, _, _ = self.start(make_trainer, fake_source, tmp_path / "checkpoint.pt")

        def fail() -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(trainer, "_update", fail)
        answer = signal.getsignal(signal.SIGINT)
        with pytest.raises(RuntimeError, match="out of memory"):
            trainer.run()
        assert signal.getsignal(signal.SIGINT) is answer and not (tmp_path / "checkpoint.pt").exists()
