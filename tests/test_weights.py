import argparse
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch

from medcoss_components.errors import InputError
from medcoss_components.networks.pretraining import PretrainingModel, encoder_state
from medcoss_components.networks.published import (
    TABLE_ROWS,
    UNREAD_TABLES,
    from_published,
    is_published,
    to_published,
)
from medcoss_components.weights import (
    hash_weights,
    load_initial_weights,
    pretraining_model_from_medcoss,
    read_weights,
    save_weights,
)

SHAPES = json.loads((Path(__file__).parent / "reference" / "medcoss_state_dict.json").read_text())
TINY = {"width": 24, "depth": 2, "decoder_width": 16, "decoder_depth": 1, "vocabulary_size": 50, "text_positions": 12}
TINY |= {"patch_2d": (4, 6), "grid_2d": (2, 3), "patch_3d": (4, 6, 8), "grid_3d": (2, 1, 3)}


def tiny(seed=0, **arguments):
    torch.manual_seed(seed)
    return PretrainingModel(preset="demo", **(TINY | arguments))


def same(first, second):
    return set(first) == set(second) and all(torch.equal(value, second[name]) for name, value in first.items())


class TestFiles:
    @pytest.mark.parametrize("name", ["model.pt", "weights.pth", "encoder.safetensors"])
    def test_round_trip(self, tmp_path, name):
        state = tiny().state_dict()
        save_weights(tmp_path / name, state)
        assert same(read_weights(tmp_path / name), state)
        assert [entry.name for entry in tmp_path.iterdir()] == [name]  # no temporary file stays

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_same_tensors_same_bytes(self, tmp_path, suffix):
        for name in ("one", "another"):
            save_weights(tmp_path / f"{name}{suffix}", tiny().state_dict())
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"another{suffix}").read_bytes()

    def test_files_are_readable_by_whom_the_umask_allows(self, tmp_path):
        before = os.umask(0o027)
        try:
            for name in ("model.pt", "encoder.safetensors"):
                save_weights(tmp_path / name, {"a": torch.ones(2)})
                assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
        finally:
            os.umask(before)

    def test_parts_of_a_larger_tensor_and_repeats_are_written_alone(self, tmp_path):
        table = torch.arange(1000.0).reshape(100, 10)
        state = {"row": table[3], "again": table[3], "turned": table[:2].T, "one": table, "two": table}
        for name in ("model.pt", "encoder.safetensors"):
            save_weights(tmp_path / name, {key: state[key] for key in ("row", "again", "turned")})
            assert (tmp_path / name).stat().st_size < 3000
            save_weights(tmp_path / name, state)
            assert same(read_weights(tmp_path / name), state)

    def test_numbers_can_stay_on_the_disk(self, tmp_path):
        state = tiny().state_dict()
        save_weights(tmp_path / "model.pt", state)
        assert same(read_weights(tmp_path / "model.pt", mapped=True), state)
        torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        assert same(read_weights(tmp_path / "old.pt", mapped=True), state)

    def test_an_archive_that_was_packed_again_is_read_whole(self, tmp_path):
        state = {"a": torch.arange(100.0)}
        save_weights(tmp_path / "model.pt", state)
        with (
            zipfile.ZipFile(tmp_path / "model.pt") as source,
            zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for entry in source.namelist():
                packed.writestr(entry, source.read(entry))
        assert same(read_weights(tmp_path / "packed.pt", mapped=True), state)

    def test_safetensors_bytes_are_those_of_the_library(self, tmp_path):
        from safetensors.torch import save

        state = {"b": torch.ones(3), "a": torch.zeros(2, 2).half()}
        save_weights(tmp_path / "x.safetensors", state)
        assert (tmp_path / "x.safetensors").read_bytes() == save(state)

    def test_a_failed_write_keeps_the_former_file(self, tmp_path, monkeypatch):
        save_weights(tmp_path / "model.pt", {"a": torch.ones(2)})

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="is full"):
            save_weights(tmp_path / "model.pt", {"a": torch.zeros(2)})
        assert read_weights(tmp_path / "model.pt")["a"].eq(1).all()
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_stage_folder_gives_its_model_before_its_encoder(self, tmp_path):
        save_weights(tmp_path / "encoder.safetensors", {"a": torch.zeros(2)})
        assert read_weights(tmp_path)["a"].eq(0).all()
        save_weights(tmp_path / "model.pt", {"a": torch.ones(2)})
        assert read_weights(str(tmp_path))["a"].eq(1).all()

    def test_a_published_checkpoint_is_unwrapped(self, tmp_path):
        torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1e-3), "epoch": 3}, tmp_path / "c.pth")
        assert list(read_weights(tmp_path / "c.pth")) == ["a"]

    def test_pickled_code_is_never_run(self, tmp_path):
        class Payload:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "was_here"),)

        torch.save({"a": torch.ones(2), "b": Payload()}, tmp_path / "bad.pt")
        with pytest.raises(InputError, match=r"bad\.pt: holds more than tensors"):
            read_weights(tmp_path / "bad.pt")
        assert not (tmp_path / "was_here").exists()

    @pytest.mark.parametrize("name", ["model.pt", "encoder.safetensors"])
    @pytest.mark.parametrize("keep", [0, 20, 0.5])
    def test_truncated_files_are_refused(self, tmp_path, name, keep):
        path = tmp_path / name
        save_weights(path, tiny().state_dict())
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep) if keep < 1 else keep])
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            read_weights(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([torch.ones(2)], "holds list"),
            ({}, "holds dict"),
            ({"a": torch.ones(2), "b": 3}, "b is no tensor"),
            ({str(i): i for i in range(9)}, "0, 1, 2, 3 and 5 more is no tensor"),
        ],
    )
    def test_other_contents_are_refused(self, tmp_path, content, message):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(InputError, match=message):
            read_weights(tmp_path / "x.pt")

    def test_missing_paths_are_named(self, tmp_path):
        with pytest.raises(InputError, match=r"none\.pt: no such file"):
            read_weights(tmp_path / "none.pt")
        with pytest.raises(InputError, match=r"holds no model\.pt or encoder\.safetensors"):
            read_weights(tmp_path)

    def test_nothing_to_write_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="no tensors to write"):
            save_weights(tmp_path / "x.pt", {})


class TestHash:
    def test_order_and_layout_do_not_matter(self):
        a, b = torch.arange(6.0).reshape(2, 3), torch.tensor(3)
        assert hash_weights({"a": a, "b": b}) == hash_weights({"b": b, "a": a.T.contiguous().T})

    @pytest.mark.parametrize(
        "other",
        [
            {"a": torch.tensor([1.0, 3.0])},
            {"b": torch.tensor([1.0, 2.0])},
            {"a": torch.tensor([[1.0, 2.0]])},
            {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
            {"a": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)},
        ],
    )
    def test_values_names_shapes_and_types_matter(self, other):
        assert hash_weights(other) != hash_weights({"a": torch.tensor([1.0, 2.0])})

    def test_it_is_sha256_in_hexadecimal(self):
        digest = hash_weights(tiny().state_dict())
        assert len(digest) == 64 and int(digest, 16) >= 0


class TestInitialWeights:
    def test_the_encoder_carries_over_and_the_heads_do_not(self):
        source, model = tiny(1), tiny(2)
        heads = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("decoder.")}
        report = load_initial_weights(model, source.state_dict())
        assert same(encoder_state(model), encoder_state(source))
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in heads.items())
        assert set(report.loaded) == set(encoder_state(model))
        assert not (report.interpolated or report.initialised or report.unexpected or report.dropped)
        assert set(report.untouched) == set(heads) | {
            name for name in model.state_dict() if name.startswith("text_head")
        }
        counts = [
            sum(value.numel() for value in state.values()) for state in (model.state_dict(), encoder_state(model))
        ]
        assert str(report).startswith(
            f"{counts[1]:,} parameters loaded ({len(report.loaded)} tensors), 0 interpolated, "
            f"{counts[0] - counts[1]:,} left at initialisation ({len(report.untouched)} tensors: decoder.mask_token, "
        )

    def test_all_parts_carry_over_from_a_file(self, tmp_path):
        source, model = tiny(1), tiny(2)
        save_weights(tmp_path / "model.pt", source.state_dict())
        load_initial_weights(model, tmp_path, parts="all")
        assert same(model.state_dict(), source.state_dict())

    def test_an_encoder_file_is_enough(self, tmp_path):
        save_weights(tmp_path / "encoder.safetensors", encoder_state(tiny(1)))
        report = load_initial_weights(tiny(2), tmp_path / "encoder.safetensors")
        assert not report.initialised

    def test_position_grids_are_interpolated_and_listed(self):
        source, model = (
            tiny(1, decoder_positions="learned"),
            tiny(2, grid_2d=(4, 6), grid_3d=(1, 2, 2), decoder_positions="learned"),
        )
        with torch.no_grad():
            source.image_embedding.tokenizers["2d"].position.fill_(2.5)
        report = load_initial_weights(model, source.state_dict(), parts="all")
        assert set(report.interpolated) == {
            "image_embedding.tokenizers.2d.position",
            "image_embedding.tokenizers.3d.position",
            "decoder.positions.2d.grid",
            "decoder.positions.3d.grid",
        }
        torch.testing.assert_close(model.image_embedding.tokenizers["2d"].position, torch.full((4, 6, 24), 2.5))
        # (24 + 4) cells of width 24 in the tokenizers, of width 16 in the decoder
        assert "1,120 interpolated (4 tensors: image_embedding.tokenizers.2d.position" in str(report)

    def test_a_mismatch_is_an_error_that_changes_nothing(self):
        model = tiny(2)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        message = r"text_embedding.word.weight \(has \(70, 24\), needs \(50, 24\)\).*allow_initialised"
        with pytest.raises(InputError, match=message):
            load_initial_weights(model, tiny(1, vocabulary_size=70).state_dict())
        assert same(before, model.state_dict())

    def test_absent_names_are_an_error(self, tmp_path):
        state = {name: value for name, value in tiny(1).state_dict().items() if "blocks.1.mlp_in" not in name}
        save_weights(tmp_path / "model.pt", state)
        with pytest.raises(InputError, match=r"model\.pt: .*encoder\.blocks\.1\.mlp_in\.weight \(absent\)"):
            load_initial_weights(tiny(2), tmp_path / "model.pt")

    def test_many_mismatches_are_counted(self):
        with pytest.raises(InputError, match=r"and \d+ more\. Use the preset"):
            load_initial_weights(tiny(2), tiny(1, width=48).state_dict())

    def test_names_that_may_stay_are_listed(self):
        model = tiny(2)
        report = load_initial_weights(
            model, tiny(1, vocabulary_size=70).state_dict(), allow_initialised=["text_embedding.word"]
        )
        assert report.initialised == ("text_embedding.word.weight",)
        assert "left at initialisation (29 tensors: text_embedding.word.weight, decoder.mask_token" in str(report)

    def test_strangers_are_listed(self):
        state = tiny(1).state_dict() | {"encoder.blocks.9.mlp_in.bias": torch.ones(2), "other": torch.ones(2)}
        report = load_initial_weights(tiny(2), state)
        assert report.unexpected == ("encoder.blocks.9.mlp_in.bias", "other")

    def test_unknown_parts_are_refused(self):
        with pytest.raises(InputError, match="parts='heads' must be one of encoder, all"):
            load_initial_weights(tiny(), {}, parts="heads")


@pytest.fixture(scope="module")
def published():
    """Small random numbers in the published names and shapes."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}


class TestPublished:
    def test_vit_base_has_the_published_parameters(self, published):
        """Every published tensor is ours under another name, except the listed tables and rows."""
        with torch.device("meta"):
            model = PretrainingModel(preset="vit_base", decoder_positions="learned")
        ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        conversion = from_published(published)
        assert {name: tuple(value.shape) for name, value in conversion.state.items()} == ours
        assert conversion.unexpected == ()
        assert conversion.dropped == (
            "video_embed.embeddings_pos.position_embeddings.weight",
            "video_embed.embeddings_type.weight",
            "token_embed.embeddings_token_type.weight[1:2]",
            "video_embed.embeddings_st_pos_2D.spatial_pos_embed.weight[196:1024]",
            "video_embed.embeddings_st_pos_2D.temporal_pos_embed.weight[1:8]",
            "video_embed.embeddings_st_pos_3D.spatial_pos_embed.weight[144:4096]",
            "video_embed.embeddings_st_pos_3D.temporal_pos_embed.weight[1:8]",
            "decoder_pos_embed_1D.weight[1:2]",
        )
        dropped_rows = 1600 + 1 + 1 + (1024 - 196) + 7 + (4096 - 144) + 7 + 1
        total = sum(value.numel() for value in published.values())
        assert sum(p.numel() for p in model.parameters()) == total - 768 * dropped_rows

    def test_export_undoes_import_but_for_rows_that_nothing_reads(self, published):
        back = to_published(from_published(published).state)
        assert {name: list(value.shape) for name, value in back.items()} == SHAPES
        for name, value in published.items():
            if name in UNREAD_TABLES:
                assert back[name].eq(0).all()
            elif name in TABLE_ROWS:
                rows = back[name].abs().sum(dim=1) > 0
                assert rows.any() and torch.equal(back[name][rows], value[rows])
            else:
                assert torch.equal(back[name], value)

    def test_import_undoes_export(self, published):
        state = from_published(published).state
        assert same(from_published(to_published(state)).state, state)

    def test_the_model_is_frozen_in_its_published_form(self, published):
        model = pretraining_model_from_medcoss({"model": published, "args": None})
        assert not model.training
        assert (model.text_attention, model.decoder_positions) == ("causal", "learned")
        assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())
        assert (
            model.encoder.blocks[0].mlp_in.weight.data_ptr()
            != published["fused_encoder.layers.0.linear1.weight"].data_ptr()
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"cls_token": None}, r"image_embedding.class_token \(absent\)"),
            ({"cls_token": torch.zeros(1, 1, 8)}, r"class_token \(has \(1, 1, 8\), needs \(1, 1, 768\)\)"),
            ({"extra": torch.zeros(1)}, r"extra \(unknown\)"),
        ],
    )
    def test_other_checkpoints_are_refused(self, published, change, message):
        state = {name: value for name, value in (published | change).items() if value is not None}
        with pytest.raises(InputError, match=message):
            pretraining_model_from_medcoss(state)

    def test_an_encoder_under_published_names_loads(self, published):
        """Uni-Perceiver-B holds the encoder, the tokenizers and the class token alone."""
        prefixes = ("fused_encoder.", "token_embed.", "video_embed.", "cls_token")
        state = {name: value for name, value in published.items() if name.startswith(prefixes)} | {
            "logit_scale": torch.ones(1)
        }
        assert is_published(state)
        with torch.device("meta"):
            model = PretrainingModel(preset="vit_base")
        model = model.to_empty(device="cpu")
        report = load_initial_weights(model, state)
        assert len(report.loaded) == len(encoder_state(model)) and not report.initialised
        assert report.unexpected == ("logit_scale",) and len(report.dropped) == 7
        assert torch.equal(model.encoder.blocks[3].mlp_in.weight, published["fused_encoder.layers.3.linear1.weight"])
        assert torch.equal(
            model.image_embedding.tokenizers["2d"].position[1, 2],
            published["video_embed.embeddings_st_pos_2D.spatial_pos_embed.weight"][16],
        )

    def test_a_short_position_table_is_refused(self, published):
        name = "video_embed.embeddings_st_pos_2D.spatial_pos_embed.weight"
        with pytest.raises(InputError, match=f"{name}: has 100 rows, at least 196"):
            from_published(published | {name: published[name][:100]})

    def test_export_needs_the_whole_model_at_the_published_grid(self, published):
        state = from_published(published).state
        with pytest.raises(InputError, match=r"missing: image_embedding.class_token"):
            to_published({name: value for name, value in state.items() if name != "image_embedding.class_token"})
        with pytest.raises(InputError, match=r"tokenizers.2d.position \(7, 14, 768\)"):
            to_published(state | {"image_embedding.tokenizers.2d.position": torch.zeros(7, 14, 768)})
