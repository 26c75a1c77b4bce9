"""Packing, on a run written by hand: what the zip holds, what it must not hold, and every refusal."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from medcoss_components import cli
from medcoss_components.data import modalities
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, sha256_file, write_json
from medcoss_components.networks.pretraining import PretrainingModel
from medcoss_components.weights import read_weights, save_weights
from medcoss_components.zoo import pack, wheel
from medcoss_components.zoo.inspection import bundle_problems, config_problems, workflow_configs
from medcoss_components.zoo.model_card import CardOptions
from medcoss_components.zoo.pack import pack_bundle
from medcoss_components.zoo.verify import verify_bundle

BUNDLES = Path(__file__).parents[2] / "bundles"
NAME = "medcoss_xray_pretraining"
REPORT = "medcoss_report_pretraining"
CHAIN = "medcoss_continual_pretraining"
SIZES = {"width": 24, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
SIZES |= {"vocabulary_size": 60, "text_positions": 16, "grid_3d": [1, 2, 2]}
METRICS = {"stage": "secret name", "modality": "xray", "samples": 7, "epochs": 2, "iterations": 4, "parameters": 11}
METRICS |= {"precision": "bf16", "first_loss": 1.5, "final_loss": 1.25, "validation_loss": 1.125, "device": "cuda:7"}
STEPS = ("train", "evaluate", "embed", "select", "artefacts")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished stage of preset demo with other sizes, as its training leaves it."""
    return finished_stage(tmp_path / "somewhere private" / "02_xray")


def finished_stage(folder: Path, modality: str = "xray", **sizes: object) -> Path:
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    sizes = {**SIZES, **sizes}
    network = PretrainingModel(preset="demo", decoder_positions="learned", **sizes)  # type: ignore[arg-type]
    save_weights(folder / "model.pt", network.state_dict())
    settings = {"modality": modality, "preset": "demo", "text_attention": "bidirectional", "seed": 0}
    settings |= {"decoder_positions": "learned"}
    write_json(folder / "stage.json", {"format": 1, "settings": settings, "steps": dict.fromkeys(STEPS, {})})
    rehearsal = {"report": {"kind": "distillation", "first": 0.5, "final": 0.25, "buffer_size": 2}}
    metrics = METRICS | {"modality": modality, "network": sizes, "rehearsal": rehearsal}
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "buffer.json", {"exemplars": [{"id": "patient-0815"}]})
    write_json(folder / "vocabulary.json", {"word": "pieces"})
    return folder


def unpack(path: Path, to: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        archive.extractall(to)
    return to / path.name.rpartition("_")[0]


def change(file: Path, **entries: object) -> None:
    write_json(file, {**read_json(file), **entries})


@pytest.fixture
def packed(run: Path, tmp_path: Path) -> Path:
    return unpack(pack_bundle(NAME, weights=run, to=tmp_path / "dist", bundles_dir=BUNDLES), tmp_path / "unpacked")


class TestContent:
    def test_files(self, packed: Path) -> None:
        for name in ("README.md", "docs/README.md", "LICENSE", "SHA256SUMS", "pyproject.toml", "configs/logging.conf"):
            assert (packed / name).is_file()
        assert sorted(path.name for path in (packed / "models").iterdir()) == [
            "encoder.safetensors",
            "model.pt",
            "vocabulary.json",
        ]
        assert not (packed / "bundle.yaml").exists()

    def test_weights_are_those_of_the_run(self, packed: Path, run: Path) -> None:
        wanted, found = read_weights(run), torch.load(packed / "models/model.pt", weights_only=True)
        assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
        encoder = read_weights(packed / "models/encoder.safetensors")
        assert all(torch.equal(value, wanted[name]) for name, value in encoder.items())
        assert "encoder.blocks.0.norm1.weight" in encoder or any(name.startswith("encoder.") for name in encoder)
        assert not any(name.startswith("decoder.") for name in encoder)

    def test_hashes(self, packed: Path) -> None:
        lines = (packed / "SHA256SUMS").read_text().splitlines()
        listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
        files = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()}
        assert set(listed) == files - {"SHA256SUMS"}
        assert all(sha256_file(packed / name) == digest for name, digest in listed.items())

    def test_configs_build_the_network_of_the_weights(self, packed: Path) -> None:
        for name in ("train", "evaluate", "inference", "infer"):
            config = read_json(packed / "configs" / f"{name}.json")
            assert config["preset"] == "demo" and config["decoder_positions"] == "learned"
            assert {key: config["network_def"][key] for key in SIZES} == SIZES
        assert read_json(packed / "configs/train.json")["vocabulary_size"] == 60
        assert read_json(packed / "configs/infer.json") == read_json(packed / "configs/inference.json")
        assert read_json(packed / "configs/demo.json")["preset"] == "demo"

    def test_still_a_valid_bundle(self, packed: Path) -> None:
        assert bundle_problems(packed) == []
        for config in workflow_configs(packed).values():
            assert config_problems(config) == []
        metadata = read_json(packed / "configs/metadata.json")
        assert metadata["eval_metrics"] == {"validation_pretext_loss": 1.125}
        assert metadata["network_data_format"]["outputs"]["pred"]["spatial_shape"] == [24]

    def test_nothing_private(self, packed: Path, tmp_path: Path) -> None:
        private = [b"patient-0815", b"secret name", b"cuda:7", b"somewhere private", str(tmp_path).encode()]
        private += [str(BUNDLES.parent).encode()]
        for path in packed.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert not [word for word in private if word in content], path

    def test_package_is_whole(self, packed: Path) -> None:
        """Every tracked kind of file of the package, imported from the bundle alone."""
        package = Path(pack.__file__).parents[1]
        ours = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
        ours = {path for path in ours if "__pycache__" not in path.parts}
        vendored = packed / "medcoss_components"
        assert {path.relative_to(vendored) for path in vendored.rglob("*") if path.is_file()} == ours
        code = "import medcoss_components as m; from medcoss_components.zoo import build; print(m.__file__)"
        done = subprocess.run([sys.executable, "-c", code], cwd=packed, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(vendored / "__init__.py")
        needs = (packed / "requirements.txt").read_text().splitlines()
        assert "monai>=1.5" in needs and needs == sorted(needs) and not any("extra" in line for line in needs)
        assert 'build-backend = "medcoss_components.zoo.wheel"' in (packed / "pyproject.toml").read_text()

    def test_wheel_from_the_bundle(self, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(packed)
        with zipfile.ZipFile(tmp_path / wheel.build_wheel(str(tmp_path))) as archive:
            names = archive.namelist()
            record = archive.read(f"{wheel.INFO}/RECORD").decode().splitlines()
            metadata = archive.read(f"{wheel.INFO}/METADATA").decode()
        assert [line.split(",")[0] for line in record] == names and record[-1].endswith("RECORD,,")
        assert "medcoss_components/zoo/templates/model_card.md" in names
        assert "Name: medcoss-components\n" in metadata and "Requires-Dist: monai>=1.5\n" in metadata


class TestReproducible:
    def test_same_input_same_bytes(self, run: Path, tmp_path: Path) -> None:
        paths = []
        for place in ("one", "other"):
            copy = shutil.copytree(run, tmp_path / place / "run")
            (copy / "model.pt").touch()
            paths.append(pack_bundle(NAME, weights=copy, to=tmp_path / place / "dist", bundles_dir=BUNDLES))
        assert paths[0].name == f"{NAME}_0.1.0.zip"
        assert paths[0].read_bytes() == paths[1].read_bytes()

    def test_entries_are_sorted_with_fixed_times_and_modes(self, run: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(pack_bundle(NAME, weights=run, to=tmp_path / "dist", bundles_dir=BUNDLES)) as archive:
            entries = archive.infolist()
        names = [entry.filename for entry in entries]
        assert names == sorted(names) and all(name.startswith(f"{NAME}/") for name in names)
        assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in entries} == {0o100644}


class TestCard:
    def test_front_matter_and_numbers(self, packed: Path) -> None:
        text = (packed / "docs/README.md").read_text()
        front = yaml.safe_load(text.split("---\n")[1])
        assert front["license"] == "other" and front["library_name"] == "monai" and "xray" in front["tags"]
        assert front["metrics"] == ["validation_pretext_loss"]
        result = front["model-index"][0]["results"][0]
        assert result["metrics"][0]["value"] == 1.125 and "datasets" not in front
        assert "| training samples | 7 |" in text and "| pretext loss on training batches, last | 1.2500 |" in text
        assert "distillation loss on the buffer of report, last | 0.2500" in text
        assert "did not name the data" in text and "models/vocabulary.json" in text and "${" not in text
        for heading in ("Intended use", "Measured", "Data", "Limits", "Licence", "Changes"):
            assert f"\n## {heading}\n" in text
        assert (packed / "README.md").read_text() == text

    def test_hugging_face_reads_it(self, packed: Path) -> None:
        """Its own reader takes the front matter; it links to licences in LICENSE and LICENSE.md alone."""
        from huggingface_hub import ModelCard

        card = ModelCard((packed / "README.md").read_text(encoding="utf-8")).data
        (result,) = card.eval_results
        assert (result.metric_type, result.metric_value) == ("validation_pretext_loss", 1.125)
        assert card.license == "other" and card.license_name and card.license_link == "LICENSE.md"
        assert "non-commercial starting checkpoint" in (packed / "LICENSE.md").read_text(encoding="utf-8")

    def test_what_the_publisher_says(self, run: Path, tmp_path: Path) -> None:
        data = ("MIMIC-CXR-JPG", "our own")
        card = CardOptions(licence="cc-by-nc-4.0", data=data, base_model="MedCoSS, published weights")
        path = pack_bundle(NAME, weights=run, to=tmp_path / "dist", bundles_dir=BUNDLES, card=card)
        folder = unpack(path, tmp_path / "unpacked")
        text = (folder / "README.md").read_text()
        front = yaml.safe_load(text.split("---\n")[1])
        assert not (folder / "LICENSE.md").exists()
        assert front["license"] == "cc-by-nc-4.0" and "license_name" not in front
        assert front["datasets"] == ["MIMIC-CXR-JPG"] and "base_model" not in front  # no names on Hugging Face
        assert "Weights: cc-by-nc-4.0. Training started from MedCoSS, published weights." in text
        assert "Trained on: MIMIC-CXR-JPG, our own." in text

    def test_no_validation_no_claim(self, run: Path, tmp_path: Path) -> None:
        change(run / "metrics.json", validation_loss=None)
        folder = unpack(pack_bundle(NAME, weights=run, to=tmp_path, bundles_dir=BUNDLES), tmp_path)
        text = (folder / "README.md").read_text()
        assert "| pretext loss on the validation split | not measured |" in text and "model-index" not in text
        assert read_json(folder / "configs/metadata.json")["eval_metrics"] == {}

    def test_one_line_each(self) -> None:
        with pytest.raises(InputError, match="one line each"):
            CardOptions(licence="mit\ntags: [x]")


class TestRefusals:
    def pack(self, run: Path, tmp_path: Path, name: str = NAME, **options: object) -> Path:
        return pack_bundle(name, weights=run, to=tmp_path / "dist", bundles_dir=BUNDLES, **options)  # type: ignore[arg-type]

    def test_no_such_bundle(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no bundle called gone"):
            self.pack(run, tmp_path, "gone")

    def test_no_such_run(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="absent: no such folder"):
            self.pack(tmp_path / "absent", tmp_path)
        with pytest.raises(InputError, match="holds no stage.json or run.json"):
            self.pack(tmp_path, tmp_path)

    def test_unfinished(self, run: Path, tmp_path: Path) -> None:
        change(run / "stage.json", steps={"train": {}, "evaluate": {}, "embed": {}})
        with pytest.raises(InputError, match=r"not finished \(select, artefacts not done\)"):
            self.pack(run, tmp_path)
        assert not (tmp_path / "dist").exists()

    def test_settings_without_the_network(self, run: Path, tmp_path: Path) -> None:
        change(run / "stage.json", settings={"modality": "xray", "preset": "demo"})
        with pytest.raises(InputError, match="settings lack text_attention, decoder_positions"):
            self.pack(run, tmp_path)

    def test_other_modality(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="trained on xray, while medcoss_ct_pretraining is for ct"):
            self.pack(run, tmp_path, "medcoss_ct_pretraining")

    def test_weights_of_another_network(self, run: Path, tmp_path: Path) -> None:
        change(run / "metrics.json", network={**SIZES, "depth": 2})
        with pytest.raises(InputError, match="does not fit the network that the run records"):
            self.pack(run, tmp_path)
        assert list((tmp_path / "dist").iterdir()) == []

    def test_a_run_that_did_not_record_its_sizes(self, run: Path, tmp_path: Path) -> None:
        """Runs of the first version: the preset alone must fit."""
        change(run / "metrics.json", network=None)
        with pytest.raises(InputError, match="preset demo, other sizes: none"):
            self.pack(run, tmp_path)

    def test_broken_bundle(self, run: Path, tmp_path: Path) -> None:
        shutil.copytree(BUNDLES / NAME, tmp_path / "bundles" / NAME)
        change(tmp_path / "bundles" / NAME / "configs/metadata.json", version="0.2.0")
        with pytest.raises(InputError, match="'0.2.0' is not in the changelog"):
            pack_bundle(NAME, weights=run, to=tmp_path / "dist", bundles_dir=tmp_path / "bundles")

    def test_not_installed(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pack, "DISTRIBUTION", "never-installed")
        with pytest.raises(InputError, match="never-installed is not installed"):
            self.pack(run, tmp_path)


class TestChain:
    def test_last_stage_of_a_chain(self, run: Path, tmp_path: Path) -> None:
        chain = run.parent
        stages = [{"folder": "01_report"}, {"folder": "02_xray"}]
        write_json(chain / "chain.json", {"status": "finished", "stages": stages})
        assert pack.read_run(chain).folder == run
        change(chain / "chain.json", status="running")
        with pytest.raises(InputError, match="the chain is running, not finished"):
            pack.read_run(chain)

    @pytest.mark.parametrize(
        ("modality", "inputs", "tokens"),
        [
            ("pathology", {"format": "RGB", "num_channels": 3, "spatial_shape": [224, 224]}, 14 * 14 + 1),
            ("xray", {"format": "magnitude", "num_channels": 3, "spatial_shape": [224, 224]}, 14 * 14 + 1),
            ("mri", {"format": "magnitude", "num_channels": 1, "spatial_shape": [16, 192, 192]}, 12 * 12 + 1),
            ("report", {"format": "token_ids", "num_channels": 112, "value_range": [0, 59]}, 112),
        ],
    )
    def test_chain_bundle_takes_any_last_stage(self, modality: str, inputs: dict, tokens: int, tmp_path: Path) -> None:
        run = finished_stage(tmp_path / "run", modality)
        path = pack_bundle(CHAIN, weights=run, to=tmp_path / "dist", bundles_dir=BUNDLES)
        folder = unpack(path, tmp_path / "unpacked")
        configs = {path.stem: read_json(path) for path in (folder / "configs").glob("*.json")}
        assert configs["train"]["preset"] == "demo" and "network_def" not in configs["train"]
        assert configs["stage"]["network_def"]["width"] == 24 and configs["stage"]["modality"] is None
        assert configs["inference"]["modality"] == configs["evaluate"]["modality"] == modality
        (declared,) = configs["metadata"]["network_data_format"]["inputs"].values()
        assert {key: declared[key] for key in inputs} == inputs
        assert configs["metadata"]["network_data_format"]["outputs"]["pred"]["num_channels"] == tokens
        assert bundle_problems(folder) == []

    def test_chain_with_a_modality_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The registry entry comes from the stage's buffer; afterwards it stands in the packed configs."""
        entry = {"name": "pack_oct", "dimension": 2, "input_shape": [3, 64, 32], "intensity": "unit_range"}
        monkeypatch.setattr(modalities, "MODALITIES", dict(modalities.MODALITIES))
        run = finished_stage(tmp_path / "run", "pack_oct")
        with pytest.raises(InputError, match="'pack_oct' is not registered"):
            pack_bundle(CHAIN, weights=run, to=tmp_path / "dist", bundles_dir=BUNDLES)
        write_json(run / "buffer.json", {"modality": entry})
        folder = unpack(pack_bundle(CHAIN, weights=run, to=tmp_path / "dist", bundles_dir=BUNDLES), tmp_path)
        (packed_entry,) = read_json(folder / "configs" / "inference.json")["extra_modalities"]
        assert packed_entry["name"] == "pack_oct" and packed_entry["input_shape"] == [3, 64, 32]
        assert read_json(folder / "configs" / "stage.json")["extra_modalities"] == []
        output = read_json(folder / "configs" / "metadata.json")["network_data_format"]["outputs"]["pred"]
        assert output["num_channels"] == 4 * 2 + 1


class TestPackedBundle:
    def test_tokens_follow_the_patches(self, tmp_path: Path) -> None:
        """Patches of 32 x 56 in 224 x 224: 7 x 4, and the class token."""
        run = finished_stage(tmp_path / "run", patch_2d=[32, 56], grid_2d=[7, 4])
        folder = unpack(pack_bundle(NAME, weights=run, to=tmp_path / "dist", bundles_dir=BUNDLES), tmp_path)
        output = read_json(folder / "configs" / "metadata.json")["network_data_format"]["outputs"]["pred"]
        assert output["num_channels"] == 29 and output["spatial_shape"] == [24]

    @pytest.mark.parametrize("name", [NAME, CHAIN])
    def test_no_default_leads_out_of_the_bundle(self, name: str, run: Path, tmp_path: Path) -> None:
        folder = unpack(pack_bundle(name, weights=run, to=tmp_path / "dist", bundles_dir=BUNDLES), tmp_path)
        for path in (folder / "configs").glob("*.json"):
            assert "../" not in path.read_text() and f"bundles/{name}" not in path.read_text()
        config = read_json(folder / "configs" / "inference.json")
        assert config["data_manifest"] == "$@bundle_root + '/dataset/manifest.json'"
        assert "--weights" not in config["about"]["command"]
        assert f"{name}/configs/inference.json --data_manifest data/manifest.json" in config["about"]["command"]

    def test_passes_verification(self, tmp_path: Path) -> None:
        """A bundle of texts; tests/clients has one of images."""
        run = finished_stage(tmp_path / "run", "report", text_positions=112, vocabulary_size=400)
        path = pack_bundle(REPORT, weights=run, to=tmp_path / "dist", bundles_dir=BUNDLES)
        folder = unpack(path, tmp_path)
        assert [str(found) for found in verify_bundle(folder) if found.status != "ok"] == []


class TestBuffer:
    def test_not_materialised(self, run: Path, tmp_path: Path, buffer: Path) -> None:
        shutil.rmtree(run / "buffer")
        with pytest.raises(InputError, match="not materialised"):
            pack_bundle(NAME, weights=run, to=tmp_path, bundles_dir=BUNDLES, with_buffer=True)

    def test_goes_along_when_asked_for(self, run: Path, tmp_path: Path, buffer: Path) -> None:
        from medcoss_components.continual.buffer import open_buffer_store, read_buffer

        path = pack_bundle(NAME, weights=run, to=tmp_path / "dist", bundles_dir=BUNDLES, with_buffer=True)
        folder = unpack(path, tmp_path / "unpacked")
        assert "training samples to rehearse" in (folder / "README.md").read_text()
        for file in (folder / "models").rglob("*"):
            assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file
        shutil.rmtree(run)
        shutil.rmtree(buffer)
        assert len(open_buffer_store(read_buffer(folder / "models"))) == 2

    @pytest.fixture
    def buffer(self, run: Path, tmp_path: Path) -> Path:
        """The run with a materialised buffer of two samples; returns the folder of the stores."""
        import numpy as np

        from medcoss_components.continual.buffer import make_buffer, materialise_buffer, write_buffer
        from medcoss_components.continual.exemplars import select_exemplars
        from medcoss_components.data.store import prepare_store
        from medcoss_components.data.synthetic import synthetic_manifest

        manifest = synthetic_manifest(tmp_path / "data", "xray", count=4, seed=0)
        store = prepare_store(manifest=manifest, modality="xray", store_dir=tmp_path / "stores", workers=1)
        chosen = select_exemplars(np.eye(4, dtype=np.float32), count=2, clusters=1, seed=0)
        made = make_buffer(store=store, exemplars=chosen, encoder_hash="0" * 64, ratio=0.5, seed=0)
        write_buffer(materialise_buffer(made, store, run / "buffer"), run / "buffer.json")
        return tmp_path / "stores"


def test_command(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bundles", "pack", NAME, "--weights", run, "--to", tmp_path / "dist", "--root", BUNDLES]
    arguments += ["--licence", "cc-by-nc-4.0", "--data", "A", "--data", "B"]
    monkeypatch.setattr(sys, "argv", ["medcoss", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    path = tmp_path / "dist" / f"{NAME}_0.1.0.zip"
    assert not stop.value.code
    assert capsys.readouterr().out == f"{sha256_file(path)}  {path}\n"
