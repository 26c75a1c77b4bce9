"""``medcoss weights``: what each command writes, shows and refuses."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from medcoss_components import published_weights
from medcoss_components.networks.presets import resolve_preset
from medcoss_components.published_weights import published_shapes
from medcoss_components.weights import read_weights

SIZES = resolve_preset(
    "demo", width=24, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, vocabulary_size=160,
    patch_2d=(4, 6), patch_3d=(2, 4, 6), grid_2d=(2, 3), grid_3d=(3, 2, 2),
)  # fmt: skip


@pytest.fixture
def checkpoint(monkeypatch, tmp_path):
    """A small published checkpoint."""
    monkeypatch.setattr(published_weights, "SIZES", SIZES)
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(shape, generator=generator) for name, shape in published_shapes(SIZES).items()}
    torch.save({"model": state, "optimizer": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "published.pth")
    return tmp_path / "published.pth"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], ("import", "inspect", "export")),
        (["import"], ("SRC", "DST", "--format", "--vocabulary", "Example: medcoss weights import")),
        (["inspect"], ("--names", "Example: medcoss weights inspect")),
        (["export"], ("SRC", "DST", "--format", "Example: medcoss weights export")),
    ],
)
def test_help(arguments, shown, medcoss):
    status, out, _ = medcoss("weights", *arguments, "--help")
    assert status == 0 and all(word in out for word in shown)


def test_there_and_back(medcoss, checkpoint, tmp_path):
    status, out, err = medcoss("weights", "import", checkpoint, tmp_path / "one")
    assert status == 0 and err == ""
    assert "names mapped, 8 dropped, 0 missing" in out and f"--init_weights {tmp_path / 'one'}" in out
    status, out, _ = medcoss("weights", "export", tmp_path / "one", tmp_path / "out.pth", "--format", "medcoss")
    assert (
        status == 0
        and out == f"{tmp_path / 'out.pth'}: {len(published_shapes(SIZES))} tensors under the published names\n"
    )
    assert medcoss("weights", "import", tmp_path / "out.pth", tmp_path / "two", "--format", "medcoss")[0] == 0
    first, second = read_weights(tmp_path / "one"), read_weights(tmp_path / "two")
    assert set(first) == set(second) and all(torch.equal(value, second[name]) for name, value in first.items())
    for name in ("model.pt", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_uni_perceiver_and_vocabulary(medcoss, checkpoint, tmp_path, vocabulary):
    state = torch.load(checkpoint, weights_only=False)["model"]
    kept = {name: value for name, value in state.items() if name in published_shapes(SIZES, "uni-perceiver")}
    torch.save({"model": kept}, checkpoint)
    vocabulary.save(tmp_path / "words.json")
    options = ("--format", "uni-perceiver", "--vocabulary", tmp_path / "words.json")
    assert medcoss("weights", "import", checkpoint, tmp_path / "out", *options)[0] == 0
    record = json.loads((tmp_path / "out" / "import.json").read_text())
    assert record["source"]["format"] == "uni-perceiver" and record["names"]["missing"]
    assert (tmp_path / "out" / "vocabulary.json").is_file()


def test_inspect(medcoss, checkpoint):
    status, out, _ = medcoss("weights", "inspect", checkpoint)
    assert status == 0 and "published names" in out and "args: Namespace with 1 settings" in out
    assert "cls_token  float32 (1, 1, 24)" not in out
    assert "  cls_token  float32 (1, 1, 24)\n" in medcoss("weights", "inspect", checkpoint, "--names")[1]


def test_overwrite(medcoss, checkpoint, tmp_path):
    for folder, command in (("one", "import"), ("out.pth", "export")):
        source = checkpoint if command == "import" else tmp_path / "one"
        assert medcoss("weights", command, source, tmp_path / folder)[0] == 0
        assert medcoss("weights", command, source, tmp_path / folder)[0] == 1
        assert medcoss("weights", command, source, tmp_path / folder, "--overwrite")[0] == 0


@pytest.mark.parametrize("command", ["import", "inspect", "export"])
@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and no end", b"<html>not found</html>"])
def test_wrong_files_end_in_one_line(command, content, medcoss, tmp_path):
    if content is not None:
        (tmp_path / "x.pth").write_bytes(content)
    target = [] if command == "inspect" else [tmp_path / "out"]
    status, out, err = medcoss("weights", command, tmp_path / "x.pth", *target)
    assert status == 1 and out == "" and err.startswith(f"error: {tmp_path / 'x.pth'}: ")
    assert len(err.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_other_names_end_in_one_line(medcoss, checkpoint, tmp_path):
    torch.save({"fused_encoder.x": torch.zeros(2)}, checkpoint)
    status, _, err = medcoss("weights", "import", checkpoint, tmp_path / "out")
    assert status == 1 and "1 unexpected: fused_encoder.x (2,)" in err and "missing: " in err
    assert len(err.splitlines()) == 1
