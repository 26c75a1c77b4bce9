"""Published checkpoints: import, export, what is refused, and how much memory it takes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from medcoss_components import published_weights
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_file
from medcoss_components.networks.presets import resolve_preset
from medcoss_components.networks.pretraining import ENCODER_PREFIXES, PretrainingModel
from medcoss_components.networks.published import to_published
from medcoss_components.published_weights import (
    FORMATS,
    export_weights,
    import_weights,
    our_shapes,
    published_shapes,
)
from medcoss_components.weights import hash_weights, pretraining_model_from_medcoss, read_weights, save_weights
from medcoss_components.weights_inspection import describe_weights

REFERENCE = json.loads((Path(__file__).parent / "reference" / "medcoss_state_dict.json").read_text())
SIZES = resolve_preset(
    "demo", width=24, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, vocabulary_size=160,
    text_positions=16, patch_2d=(4, 6), patch_3d=(2, 4, 6), grid_2d=(2, 3), grid_3d=(3, 2, 2),
)  # fmt: skip


def our_state(positions="learned", seed=3):
    """Random numbers in every tensor of a small network."""
    with torch.device("meta"):
        model = PretrainingModel(preset="demo", decoder_positions=positions, **asdict(SIZES))
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()}


def same(first, second):
    return set(first) == set(second) and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture
def published(monkeypatch):
    """A small checkpoint under the published names; every row of every table has numbers."""
    monkeypatch.setattr(published_weights, "SIZES", SIZES)
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in published_shapes(SIZES).items()}


@pytest.fixture
def write(tmp_path):
    """Write a checkpoint as its authors do: model, optimizer and args in one pickle."""

    def checkpoint(state, name="published.pth", **options):
        path = tmp_path / name
        optimizer = {"state": {0: {"exp_avg": torch.zeros(7)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
        args = argparse.Namespace(lr=1e-3, output_dir="/home/someone", gpu=None)
        torch.save({"model": state, "optimizer": optimizer, "args": args, "epoch": 299}, path, **options)
        return path

    return checkpoint


def some(state, format):
    return {name: value for name, value in state.items() if name.startswith(FORMATS[format])}


class TestShapes:
    def test_they_are_the_published_ones(self):
        assert {name: list(shape) for name, shape in published_shapes().items()} == REFERENCE

    def test_uni_perceiver_holds_encoder_tokenizers_and_class_token(self):
        names = published_shapes(format="uni-perceiver")
        assert {name.split(".")[0] for name in names} == {"fused_encoder", "token_embed", "video_embed", "cls_token"}
        assert all(list(shape) == REFERENCE[name] for name, shape in names.items())


class TestImport:
    def test_folder_has_weights_twice_and_a_record(self, published, write, tmp_path):
        path = write(published)
        done = import_weights(path, tmp_path / "weights")
        folder = tmp_path / "weights"
        assert {entry.name for entry in folder.iterdir()} == {"model.pt", "model.safetensors", "import.json"}
        state = read_weights(folder / "model.pt")
        assert same(state, read_weights(folder / "model.safetensors")) and same(state, read_weights(folder))
        assert {name: tuple(value.shape) for name, value in state.items()} == our_shapes(SIZES)
        assert torch.equal(state["encoder.blocks.1.mlp_in.weight"], published["fused_encoder.layers.1.linear1.weight"])
        assert str(done).startswith(f"{folder}: ") and "8 dropped, 0 missing" in str(done)

    def test_record(self, published, write, tmp_path):
        path = write(published)
        import_weights(path, tmp_path / "weights")
        record = json.loads((tmp_path / "weights" / "import.json").read_text())
        state = read_weights(tmp_path / "weights")
        assert record["source"] == {
            "name": "published.pth",
            "format": "medcoss",
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        assert record["weights"]["hash"] == hash_weights(state) and record["weights"]["tensors"] == len(state)
        assert record["files"]["model.pt"] == sha256_file(tmp_path / "weights" / "model.pt")
        assert record["left_out"] == ["args", "epoch", "optimizer"]
        mapped = record["names"]["mapped"]
        assert set(mapped) == set(state)
        assert mapped["encoder.blocks.0.attention_scale"] == {"name": "fused_encoder.layers.0.gamma_1", "shape": [24]}
        assert mapped["decoder.positions.2d.grid"] == {
            "name": "decoder_pos_embed_2D",
            "rows": [1, 7],
            "shape": [2, 3, 16],
        }
        dropped = {entry["name"]: entry for entry in record["names"]["dropped"]}
        assert dropped["video_embed.embeddings_type.weight"]["shape"] == [1, 24]
        spatial = dropped["video_embed.embeddings_st_pos_3D.spatial_pos_embed.weight"]
        assert spatial["rows"] == [12, 4096] and spatial["shape"] == [4084, 24]
        assert record["names"]["missing"] == [] and record["network"]["decoder_positions"] == "learned"
        assert record["versions"]["torch"] == torch.__version__ and "non-commercial" in record["licence"]
        assert "/home/someone" not in json.dumps(record)

    def test_every_published_number_is_mapped_or_dropped(self, published, write, tmp_path):
        names = import_weights(write(published), tmp_path / "weights").record["names"]
        dropped = sum(torch.Size(entry["shape"]).numel() for entry in names["dropped"])
        kept = sum(value.numel() for value in read_weights(tmp_path / "weights").values())
        assert kept + dropped == sum(value.numel() for value in published.values())

    def test_uni_perceiver_lacks_decoder_and_heads(self, published, write, tmp_path):
        path = write(some(published, "uni-perceiver"))
        record = import_weights(path, tmp_path / "weights", format="uni-perceiver").record
        state = read_weights(tmp_path / "weights")
        assert all(name.startswith(ENCODER_PREFIXES) for name in state)
        missing = {entry["name"]: entry["shape"] for entry in record["names"]["missing"]}
        assert set(missing) == set(our_shapes(SIZES)) - set(state)
        assert missing["text_head.output.weight"] == [160, 24] and "decoder.positions.2d.grid" in missing
        assert record["network"] == {"preset": "vit_base", "parts": "encoder"}

    def test_a_flat_file_and_the_old_file_format_are_read_too(self, published, write, tmp_path):
        torch.save(published, tmp_path / "flat.pth")
        assert import_weights(tmp_path / "flat.pth", tmp_path / "one").record["left_out"] == []
        old = write(published, name="old.pth", _use_new_zipfile_serialization=False)
        import_weights(old, tmp_path / "two")
        assert (tmp_path / "one" / "model.pt").read_bytes() == (tmp_path / "two" / "model.pt").read_bytes()

    def test_vocabulary_lies_beside_the_weights(self, published, write, tmp_path, vocabulary):
        vocabulary.save(tmp_path / "words.json")
        import_weights(write(published), tmp_path / "weights", vocabulary=tmp_path / "words.json")
        assert (tmp_path / "weights" / "vocabulary.json").is_file()

    def test_vocabulary_must_fit_the_word_table(self, write, published, tmp_path, texts):
        from medcoss_components.text.vocabulary import train_vocabulary

        train_vocabulary(texts, size=170, path=tmp_path / "words.json")
        with pytest.raises(InputError, match="has 1[67][0-9] pieces, the word table only 160 rows"):
            import_weights(write(published), tmp_path / "weights", vocabulary=tmp_path / "words.json")


class TestRefusals:
    def test_other_names_and_shapes_are_all_listed(self, published, write, tmp_path):
        state = published | {"head.bias": torch.zeros(9), "cls_token": torch.zeros(1, 1, 8)}
        del state["mask_token"], state["fused_encoder.layers.1.gamma_2"]
        with pytest.raises(InputError) as caught:
            import_weights(write(state), tmp_path / "weights")
        assert str(caught.value).endswith(
            "published.pth: not a published medcoss checkpoint; "
            "2 missing: mask_token (1, 1, 16), fused_encoder.layers.1.gamma_2 (24,); 1 unexpected: head.bias (9,); "
            "1 of another shape: cls_token (has (1, 1, 8), needs (1, 1, 24))."
        )
        assert not (tmp_path / "weights").exists()

    @pytest.mark.parametrize(("held", "asked"), [("uni-perceiver", "medcoss"), ("medcoss", "uni-perceiver")])
    def test_the_other_format_is_named(self, held, asked, published, write, tmp_path):
        with pytest.raises(InputError, match=f"not a published {asked} .* names are those of --format {held}"):
            import_weights(write(some(published, held)), tmp_path / "weights", format=asked)

    def test_unknown_format(self, tmp_path):
        with pytest.raises(InputError, match="format='mae' must be one of medcoss, uni-perceiver"):
            import_weights(tmp_path / "x.pth", tmp_path / "weights", format="mae")

    def test_our_own_weights_need_no_import(self, published, tmp_path):
        save_weights(tmp_path / "own.pt", our_state())
        with pytest.raises(InputError, match="own.pt: holds this package's names"):
            import_weights(tmp_path / "own.pt", tmp_path / "weights")

    @pytest.mark.parametrize("keep", [0, 3, 0.3, 0.99])
    def test_truncated(self, keep, published, write, tmp_path):
        path = write(published)
        size = int(path.stat().st_size * keep) if keep < 1 else keep
        with open(path, "r+b") as stream:
            stream.truncate(size)
        with pytest.raises(InputError, match=r"published\.pth: " + ("cut short" if size > 3 else "")):
            import_weights(path, tmp_path / "weights")

    def test_a_changed_byte(self, published, write, tmp_path):
        path = write(published)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged since it was written"):
            import_weights(path, tmp_path / "weights")

    @pytest.mark.parametrize("content", [b"<html>404</html>", b"%PDF-1.4", b"\x80\x04K\x01."])
    def test_wrong_file(self, content, tmp_path):
        (tmp_path / "page.pth").write_bytes(content)
        with pytest.raises(InputError, match=r"page\.pth: "):
            import_weights(tmp_path / "page.pth", tmp_path / "weights")

    def test_pickled_code_is_never_run(self, published, tmp_path):
        class Payload:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "was_here"),)

        torch.save({"model": published, "args": Payload()}, tmp_path / "bad.pth")
        for call in (lambda: import_weights(tmp_path / "bad.pth", tmp_path / "w"), lambda: describe_weights(
            tmp_path / "bad.pth"
        )):  # fmt: skip
            with pytest.raises(InputError, match=r"bad\.pth: holds more than tensors"):
                call()
        assert not (tmp_path / "was_here").exists()

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize(
        "stranger",
        [
            {"cls_token": torch.zeros(1, 1, 24).to_sparse()},
            {"cls_token": torch.zeros(1, 1, 24, device="meta")},
            {"cls_token": None},
            {7: torch.zeros(1)},
        ],
    )
    def test_what_is_no_table_of_numbers(self, stranger, published, write, tmp_path):
        path = write(published | stranger)
        for call in (lambda: import_weights(path, tmp_path / "weights"), lambda: describe_weights(path, names=True)):
            with pytest.raises(InputError, match=r"published\.pth: (cls_token|7) is no tensor"):
                call()

    def test_whole_numbers_and_broken_numbers(self, published, write, tmp_path):
        with pytest.raises(InputError, match=r"not floating-point numbers: cls_token \(torch.int64\)"):
            import_weights(write(published | {"cls_token": torch.zeros(1, 1, 24).long()}), tmp_path / "weights")
        with pytest.raises(InputError, match="not finite: mask_token"):
            import_weights(write(published | {"mask_token": torch.full((1, 1, 16), torch.nan)}), tmp_path / "weights")

    def test_what_is_there_stays(self, published, write, tmp_path):
        path = write(published)
        import_weights(path, tmp_path / "weights")
        with pytest.raises(InputError, match=r"holds model\.pt, model\.safetensors, import\.json already"):
            import_weights(path, tmp_path / "weights")
        import_weights(path, tmp_path / "weights", overwrite=True)
        (tmp_path / "stage").mkdir()
        for name in ("model.pt", "stage.json"):
            (tmp_path / "stage" / name).touch()
        with pytest.raises(InputError, match="is the folder of a stage"):
            import_weights(path, tmp_path / "stage", overwrite=True)
        with pytest.raises(InputError, match="must be a folder"):
            import_weights(path, tmp_path / "weights.pt")
        path.rename(tmp_path / "model.pt")
        with pytest.raises(InputError, match="would be overwritten by its own import"):
            import_weights(tmp_path / "model.pt", tmp_path, overwrite=True)


class TestExport:
    @pytest.mark.parametrize("positions", ["learned", "sincos"])
    def test_import_undoes_export_bit_for_bit(self, positions, published, tmp_path):
        state = our_state(positions)
        save_weights(tmp_path / "own" / "model.pt", state)
        shapes = export_weights(tmp_path / "own", tmp_path / "out.pth")
        assert shapes == published_shapes(SIZES)
        record = import_weights(tmp_path / "out.pth", tmp_path / "back").record
        assert same(read_weights(tmp_path / "back"), state)
        assert record["network"]["decoder_positions"] == positions and record["names"]["missing"] == []
        assert (tmp_path / "back" / "model.pt").read_bytes() != b""

    def test_fixed_positions_are_what_the_decoder_uses(self):
        model = PretrainingModel(preset="demo", decoder_positions="sincos", **asdict(SIZES))
        for dimension, grid in ((2, SIZES.grid_2d), (3, SIZES.grid_3d)):
            slot, table = model.decoder.positions[f"{dimension}d"](grid, torch.device("cpu"))
            tables = published_weights.fixed_positions(SIZES)
            assert torch.equal(tables[f"decoder.positions.{dimension}d.class_slot"], slot)
            assert torch.equal(tables[f"decoder.positions.{dimension}d.grid"].flatten(0, -2), table)

    def test_the_file_opens_for_everyone(self, published, tmp_path):
        save_weights(tmp_path / "own.safetensors", our_state())
        export_weights(tmp_path / "own.safetensors", tmp_path / "out.pth")
        content = torch.load(tmp_path / "out.pth", weights_only=True)
        assert list(content) == ["model"] and same(content["model"], to_published(our_state(), sizes=SIZES))

    def test_an_encoder_alone_is_refused_with_its_missing_names(self, published, tmp_path):
        state = {name: value for name, value in our_state().items() if name.startswith(ENCODER_PREFIXES)}
        save_weights(tmp_path / "encoder.safetensors", state)
        with pytest.raises(InputError, match=r"not a whole vit_base .* missing: decoder\.mask_token \(1, 1, 16\)"):
            export_weights(tmp_path / "encoder.safetensors", tmp_path / "out.pth")

    def test_another_size_is_refused_with_both_shapes(self, published, tmp_path):
        state = our_state() | {"text_head.output.bias": torch.zeros(9)}
        save_weights(tmp_path / "own.pt", state)
        with pytest.raises(InputError, match=r"text_head\.output\.bias \(has \(9,\), needs \(160,\)\)"):
            export_weights(tmp_path / "own.pt", tmp_path / "out.pth")

    def test_refusals(self, published, write, tmp_path):
        path = write(published)
        with pytest.raises(InputError, match="under the published names already"):
            export_weights(path, tmp_path / "out.pth")
        with pytest.raises(InputError, match="exists already"):
            export_weights(path, path)
        with pytest.raises(InputError, match="format='onnx' must be medcoss"):
            export_weights(path, tmp_path / "out.pth", format="onnx")


class TestInspect:
    def test_published(self, published, write, monkeypatch):
        monkeypatch.setattr("medcoss_components.weights_inspection.published_shapes", small_shapes)
        path = write(published)
        text = describe_weights(path)
        assert sha256_file(path) in text and "published checkpoint, format medcoss" in text
        assert "beside     args: Namespace with 3 settings" in text and "optimizer: dict with 2 entries" in text
        assert "epoch: int" in text and "/home/someone" not in text
        assert f"{len(published)}, {sum(v.numel() for v in published.values()):,} parameters, float32" in text

    def test_published_names_of_another_network(self, published, write):
        assert "published names, but not" in describe_weights(write(published))

    def test_imported_and_names(self, published, write, tmp_path):
        import_weights(write(published), tmp_path / "weights")
        text = describe_weights(tmp_path / "weights", names=True)
        assert "weights of this package, encoder, decoder and text head" in text
        assert "imported   from published.pth (medcoss), sha256 " in text
        assert "  encoder.blocks.0.mlp_in.bias  float32 (96,)" in text

    @pytest.mark.parametrize(
        ("name", "kind"), [("encoder.norm", "encoder alone"), ("fc.weight", "does not know")]
    )  # fmt: skip
    def test_other_files(self, name, kind, tmp_path):
        save_weights(tmp_path / "x.safetensors", {name: torch.zeros(2, dtype=torch.float16)})
        text = describe_weights(tmp_path / "x.safetensors")
        assert kind in text and "float16" in text


def small_shapes(format="medcoss"):
    return published_shapes(SIZES, format)


MEASURE = """
import resource, sys
from pathlib import Path
from medcoss_components.networks.presets import resolve_preset
from medcoss_components import published_weights as module
sizes = resolve_preset("vit_base", depth=int(sys.argv[3]), vocabulary_size=int(sys.argv[4]))
module.our_shapes(sizes)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
module.import_weights(sys.argv[1], sys.argv[2], sizes=sizes)
print(before * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_peak_memory_of_import(tmp_path):
    """At most 2.5 times the file, whatever the interpreter with torch itself takes left out."""
    sizes = resolve_preset("vit_base", depth=2, vocabulary_size=4000)
    path = tmp_path / "published.pth"
    state = {name: torch.zeros(shape) for name, shape in published_shapes(sizes).items()}
    torch.save({"model": state, "optimizer": {}, "args": argparse.Namespace(lr=1.0)}, path)
    del state
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "weights"), "2", "4000"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, peak = map(int, done.stdout.split())
    assert path.stat().st_size > 100e6
    assert peak - before <= 2.5 * path.stat().st_size


def test_an_imported_file_builds_the_published_network(tmp_path):
    """At full size, without its numbers: what import writes is what the network of the paper holds."""
    state = {name: torch.zeros(1).expand(shape) for name, shape in published_shapes().items()}
    model = pretraining_model_from_medcoss(state)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == our_shapes(
        published_weights.SIZES
    )
