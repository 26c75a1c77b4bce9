"""The scripts on scale, precision and GPUs, in their smallest form."""

from __future__ import annotations

import importlib.util
import json
import mmap

import gpu
import lean
import precision
import pytest
import scale
import sides
from harness import Row

from medcoss_components.data.manifest import read_manifest


def test_long_manifest_is_a_manifest(tmp_path):
    path = scale.long_manifest(tmp_path / "long", 200)
    assert read_manifest(path).counts == {"training": 180, "validation": 0, "testing": 20}
    opened = scale.open_apart(path)
    assert opened["count"] == 200 and opened["seconds"] > 0 and opened["bytes"] > opened["growth"] > 0


def test_growth_of_an_epoch(options):
    row = scale.growth_row(options, count=2000, workers=0)
    assert row.kind == "limit" and row.note.startswith("2,000 samples")


def test_memory_of_the_family_counts_what_this_process_holds():
    before = scale.family_bytes()
    own = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # an array could take pages that this process holds already
    with mmap.mmap(-1, 64 << 20, flags=own) as held:
        held.write(b"\1" * len(held))
        assert scale.family_bytes() - before > 0.9 * len(held)


def test_large_selection(options):
    row = scale.selection_row(options, count=500, width=8)
    assert row.what == "exemplars of 500 x 8, 5 clusters" and row.met


def test_steps_by_items_and_buffers(options, monkeypatch):
    monkeypatch.setattr(scale, "islice", lambda iterator, steps: [next(iterator) for _ in range(2)])
    assert scale.items_row(options, small=64, large=128).ratio > 0
    assert scale.buffers_row(options, small=32, large=64).ratio > 0


def test_demo_settings_keep_the_share_of_the_warm_up():
    settings, stages = precision.demo_settings(0.1)
    assert settings["max_epochs"] == 3 and settings["warmup_epochs"] == pytest.approx(0.3)
    assert stages["report"]["max_epochs"] == 1 and stages["report"]["warmup_epochs"] == pytest.approx(0.1)
    assert "data_manifest" not in stages["xray"]


def _run(final):
    return {"xray": {"steps": (1, 2), "losses": (1.0, final), "final": final, "validation": None}}


def test_precisions_are_compared_against_the_noise_of_the_seeds(tmp_path):
    runs = {"float32": [_run(0.5), _run(0.7)], "bf16": [_run(0.6), _run(0.8)]}
    (row,) = precision.compare(runs, "final")
    assert row["difference"] == pytest.approx(0.1) and row["noise"] == pytest.approx(0.02**0.5)
    assert row["within"] and row["paired"] == pytest.approx([0.1, 0.1])
    assert "+0.1000, +0.1000" in precision.table([row])
    assert precision.compare(runs, "validation") == []
    runs["bf16"][1]["xray"] |= {"steps": (1, 2, 3), "losses": (1.0, 0.9, 0.8)}  # another seed rehearses at other steps
    precision.draw(runs, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


@pytest.mark.slow
def test_precision_trains_a_chain_twice(tmp_path, capsys):
    arguments = ["--modalities", "xray", "--seeds", "0", "--share", "0.04", "--count", "4"]
    arguments += ["--to", str(tmp_path), "--results", str(tmp_path / "results"), "--record"]
    for _ in range(2):  # the second time nothing is trained
        assert precision.main(arguments) == 0
    rows = json.loads((tmp_path / "results" / "precision.json").read_text())["rows"]
    assert [(row["modality"], row["loss"]) for row in rows] == [("xray", "final"), ("xray", "validation")]
    assert (tmp_path / "results" / "precision.png").is_file() and "| xray | final |" in capsys.readouterr().out


def test_without_a_gpu_the_script_says_so(capsys):
    assert gpu.start([]) == 3
    assert "no GPU here, nothing was measured" in capsys.readouterr().err


@pytest.fixture
def scene(tiny_sizes, tiny_modality, monkeypatch):
    """Everything of the GPU table on the CPU, with tiny networks and samples."""
    monkeypatch.setattr(gpu, "MODALITIES", {kind: tiny_modality(name) for kind, name in gpu.MODALITIES.items()})
    setting = {"preset": "demo", "pieces": 120, "sizes": tiny_sizes}
    return gpu.Scene("cpu", batch=2, steps=1, product=32, workers=0, samples=6, largest=4, setting=setting)


@pytest.mark.parametrize("name", list(gpu.rows_of(gpu.TRIAL)))
def test_gpu_rows_on_the_cpu(scene, options, name):
    row = gpu.rows_of(scene)[name](options)
    assert isinstance(row, Row) and row.name == name and all(value > 0 for value in row.ours)


def test_operations_are_counted(scene, options):
    ours = sides.OurSteps(scene.of("2d"), options.folder / "count")
    assert gpu.counted_operations(ours) > 1e5


@pytest.mark.parametrize(("name", "rehearsal"), [("report", False), ("xray", True), ("ct", False)])
def test_lean_steps_are_those_of_the_engine(tiny_setting, tmp_path, monkeypatch, name, rehearsal):
    losses = {}
    for installed in (True, False):
        monkeypatch.setattr(sides, "engine_installed", lambda installed=installed: installed)
        steps = sides.OurSteps(tiny_setting(name), tmp_path / str(installed), rehearsal=rehearsal)
        assert isinstance(steps.trainer, lean.LeanTrainer) is not installed
        losses[installed] = [float(steps.step()) for _ in range(3)]
    assert losses[True] == losses[False]


def test_lean_side_needs_neither_monai_nor_ignite(tmp_path):
    """Run in a process where both are hidden."""
    import subprocess
    import sys

    folder = importlib.util.find_spec("harness").origin.rsplit("/", 1)[0]
    code = (
        "import sys, importlib.util, pathlib\n"
        "for name in ('monai', 'ignite', 'sklearn', 'nibabel', 'tokenizers'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {folder!r})\n"
        "import sides\n"
        "sides.find_spec = lambda name: None\n"
        f"ours = sides.OurSteps(sides.Setting('xray', batch=2, preset='demo'), pathlib.Path({str(tmp_path)!r}))\n"
        "print(float(ours.step()) > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
