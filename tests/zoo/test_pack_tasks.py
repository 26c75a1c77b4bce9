"""Packing fine-tuned networks, on runs written by hand: configs, metadata and card follow the run, not the defaults."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from medcoss_components.errors import InputError
from medcoss_components.files import read_json, write_json
from medcoss_components.networks.classification import ClassificationModel
from medcoss_components.networks.segmentation import SegmentationModel
from medcoss_components.weights import read_weights, save_weights
from medcoss_components.zoo.inspection import bundle_problems, config_problems, workflow_configs
from medcoss_components.zoo.model_card_numbers import task_tables
from medcoss_components.zoo.pack import pack_bundle
from medcoss_components.zoo.packed_run import read_run

BUNDLES = Path(__file__).parents[2] / "bundles"
TEXT, CT, LIVER = "pubmed_abstract_classification", "covid_ct_classification", "liver_tumor_ct_segmentation"
SIZES = {"width": 24, "depth": 2, "heads": 2, "vocabulary_size": 60, "text_positions": 32}
STEPS = ("train", "evaluate", "artefacts")
COUNTS = {"samples": 7, "validation_samples": 3, "testing_samples": 0, "epochs": 2, "best_epoch": 1}
WINDOW = {"clip": [-100, 300], "subtract": 100, "divide": 200}

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make(task, modality, numbers=..., **settings)``: a finished fine-tuning, as it is left by its training."""

    def write(task: str, modality: str, numbers: dict[str, Any] | None = None, **settings: Any) -> Path:
        folder = tmp_path / "private" / task
        torch.manual_seed(0)
        network_class = {"classification": ClassificationModel, "segmentation": SegmentationModel}[task]
        network = {"preset": "demo", "modality": modality, **settings, **SIZES}
        model = network_class(
            **{key: value for key, value in network.items() if key not in ("preparation", "intensity")}
        )
        save_weights(folder / "model.pt", model.state_dict())
        known = {"preset": "demo", "modality": modality, "preparation": None, "intensity": None, **settings}
        known |= {"text_attention": "bidirectional"} if task == "classification" else {"feature_size": 16}
        write_json(folder / "run.json", {"format": 1, "settings": known, "steps": dict.fromkeys(STEPS, {})})
        sizes = {**vars(model.sizes)}
        init = {"init": f"212 of 214 tensors from {tmp_path}"}
        write_json(
            folder / "metrics.json",
            {"task": task, "modality": modality, "network": sizes, **COUNTS, **init, **(numbers or {})},
        )
        return folder

    return write


def pack(name: str, run: Path, tmp_path: Path) -> Path:
    path = pack_bundle(name, weights=run, to=tmp_path / "dist", bundles_dir=BUNDLES)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked" / name


def configs(folder: Path) -> dict[str, Any]:
    return {path.stem: read_json(path) for path in (folder / "configs").glob("*.json")}


class TestConfigs:
    def test_classification_of_texts(self, make: Make, tmp_path: Path) -> None:
        classes = ["AIM", "RESULT"]
        run = make("classification", "report", input_shape=[32], classes=classes, preparation={"max_length": 20})
        write_json(run / "vocabulary.json", {"word": "pieces"})
        folder = pack(TEXT, run, tmp_path)
        found = configs(folder)
        for name in ("train", "evaluate", "inference", "infer"):
            assert found[name]["preset"] == "demo" and found[name]["input_shape"] == [32]
            assert found[name]["classes"] == classes and found[name]["preparation"] == {"max_length": 20}
            overrides = {key: found[name]["network_def"][key] for key in SIZES}
            assert overrides == SIZES and "grid_2d" not in found[name]["network_def"]
        assert found["train"]["vocabulary_size"] == 60 and found["train"]["batch_size"] == 64
        network = found["metadata"]["network_data_format"]
        assert network["inputs"]["text"]["num_channels"] == 32 and network["inputs"]["text"]["value_range"] == [0, 59]
        assert network["outputs"]["pred"]["num_channels"] == 2
        assert network["outputs"]["pred"]["channel_def"] == {"0": "AIM", "1": "RESULT"}
        assert found["metadata"]["label_classes"] == "class name or its number: 0 = AIM, 1 = RESULT"
        assert (folder / "models" / "vocabulary.json").is_file()
        assert bundle_problems(folder) == []
        assert [problem for config in workflow_configs(folder).values() for problem in config_problems(config)] == []

    def test_segmentation_of_volumes(self, make: Make, tmp_path: Path) -> None:
        """Window of 32 x 48 x 64; HU from -100 to 300, minus 100, by 200: -1 to 1."""
        settings = {"input_shape": [1, 32, 48, 64], "regions": {"organ": [1, 2], "cyst": [2], "all": "any"}}
        run = make("segmentation", "ct", **settings, intensity=WINDOW, preparation={"spacing": [3, 2, 2]})
        found = configs(pack(LIVER, run, tmp_path))
        for name in ("train", "evaluate", "inference"):
            assert {key: found[name][key] for key in settings} == settings
            assert found[name]["intensity"] == WINDOW and found[name]["preparation"] == {"spacing": [3, 2, 2]}
        network = found["metadata"]["network_data_format"]
        assert (
            network["inputs"]["image"]["spatial_shape"] == network["outputs"]["pred"]["spatial_shape"] == [32, 48, 64]
        )
        assert network["inputs"]["image"]["value_range"] == [-1, 1]
        assert network["outputs"]["pred"]["channel_def"] == {"0": "organ", "1": "cyst", "2": "all"}
        assert found["metadata"]["pred_classes"].startswith("logit of each region, in this order: organ, cyst, all;")

    def test_preparation_of_the_manifest_comes_along(self, make: Make, tmp_path: Path) -> None:
        numbers = {"preparation": {"spacing": [4, 1, 1], "percentiles": None}}
        run = make("segmentation", "ct", numbers, input_shape=[1, 32, 32, 32], regions={"liver": [1]})
        assert configs(pack(LIVER, run, tmp_path))["inference"]["preparation"] == numbers["preparation"]

    def test_evaluation_splits_as_the_training_did(self, make: Make, tmp_path: Path) -> None:
        split = {"seed": 10, "validation_share": 0.25}
        run = make("classification", "ct", input_shape=[1, 32, 32, 32], classes=["no", "yes"])
        record = read_json(run / "run.json")
        write_json(run / "run.json", {**record, "settings": {**record["settings"], **split}})
        found = configs(pack(CT, run, tmp_path))
        assert {name: found["evaluate"][name] for name in split} == split
        assert found["train"]["seed"] == 0 and "seed" not in found["inference"]

    def test_unchanged_classes_keep_their_texts(self, make: Make, tmp_path: Path) -> None:
        classes = read_json(BUNDLES / CT / "configs" / "train.json")["classes"]
        run = make("classification", "ct", input_shape=[1, 32, 32, 32], classes=classes)
        found = configs(pack(CT, run, tmp_path))["metadata"]
        assert found["label_classes"] == read_json(BUNDLES / CT / "configs" / "metadata.json")["label_classes"]

    def test_weights_and_encoder(self, make: Make, tmp_path: Path) -> None:
        run = make("classification", "ct", input_shape=[1, 32, 32, 32], classes=["no", "yes"])
        folder = pack(CT, run, tmp_path)
        wanted, found = read_weights(run), torch.load(folder / "models" / "model.pt", weights_only=True)
        assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
        encoder = read_weights(folder / "models" / "encoder.safetensors")
        assert encoder and not any(name.startswith("head.") for name in encoder)


class TestCard:
    NUMBERS = {
        "validation": {"accuracy": 0.75, "auc": None, "sensitivity/no": 0.5},
        "testing": {"accuracy": 0.625, "auc": 0.5},
        "testing_samples": 8,
        "intervals": {
            "validation": {"accuracy": [0.5, 1.0], "auc": [None, None]},
            "testing": {"accuracy": [0.25, 0.875]},
        },
        "selection": "accuracy+auc+f1",
    }

    def test_numbers_of_each_split(self, make: Make, tmp_path: Path) -> None:
        run = make("classification", "ct", self.NUMBERS, input_shape=[1, 32, 32, 32], classes=["no", "yes"])
        folder = pack(CT, run, tmp_path)
        text = (folder / "README.md").read_text()
        front = yaml.safe_load(text.split("---\n")[1])
        assert front["pipeline_tag"] == "image-classification" and "classification" in front["tags"]
        assert front["metrics"] == ["accuracy", "roc_auc"]
        testing, validation = front["model-index"][0]["results"]
        assert [entry["value"] for entry in testing["metrics"]] == [0.625, 0.5]
        assert [entry["type"] for entry in validation["metrics"]] == ["accuracy"]
        assert [result.metric_value for result in ModelCard(text).data.eval_results] == [0.625, 0.5, 0.75]
        assert "Testing split, 8 samples:" in text and "| accuracy | 0.6250 | 0.2500 to 0.8750 |" in text
        assert "| auc | undefined |  |" in text and "| sensitivity/no | 0.5000 |  |" in text
        assert "| epoch of these weights | 1 |" in text and "| chosen by | accuracy+auc+f1 |" in text
        assert "classes ['no', 'yes']" in text and "${" not in text and str(tmp_path) not in text
        measured = read_json(folder / "configs" / "metadata.json")["eval_metrics"]
        assert measured["testing_accuracy"] == 0.625 and "validation_auc" not in measured

    @pytest.mark.parametrize(
        ("task", "modality", "name", "settings", "tag"),
        [
            ("classification", "report", TEXT, {"input_shape": [32], "classes": ["a", "b"]}, "text-classification"),
            (
                "segmentation",
                "ct",
                LIVER,
                {"input_shape": [1, 32, 32, 32], "regions": {"liver": "any"}},
                "image-segmentation",
            ),
        ],
    )
    def test_task_for_hugging_face(
        self, make: Make, tmp_path: Path, task: str, modality: str, name: str, settings: dict, tag: str
    ) -> None:
        text = (pack(name, make(task, modality, **settings), tmp_path) / "README.md").read_text()
        front = yaml.safe_load(text.split("---\n")[1])
        assert front["pipeline_tag"] == tag and "model-index" not in front
        assert "Not evaluated" in text

    def test_numbers_that_are_not_finite(self) -> None:
        text = task_tables({"first_loss": float("nan"), "testing": {"hd95": None}})
        assert "| training loss, first | undefined |" in text and "| hd95 | undefined |" in text
        assert "Testing split, ? samples" in text


class TestRefusals:
    def test_other_kind_of_training(self, make: Make, tmp_path: Path) -> None:
        run = make("classification", "ct", input_shape=[1, 32, 32, 32], classes=["no", "yes"])
        with pytest.raises(InputError, match=f"training was classification, while {LIVER} is for segmentation"):
            pack(LIVER, run, tmp_path)
        with pytest.raises(InputError, match="medcoss_ct_pretraining is for pretraining"):
            pack("medcoss_ct_pretraining", run, tmp_path)

    def test_other_modality(self, make: Make, tmp_path: Path) -> None:
        run = make("classification", "mri", input_shape=[1, 32, 32, 32], classes=["no", "yes"])
        with pytest.raises(InputError, match=f"trained on mri, while {CT} is for ct"):
            pack(CT, run, tmp_path)

    def test_unfinished_or_unknown(self, make: Make, tmp_path: Path) -> None:
        run = make("classification", "ct", {"task": "sorting"}, input_shape=[1, 32, 32, 32], classes=["no", "yes"])
        with pytest.raises(InputError, match="found 'sorting'"):
            read_run(run)
        write_json(run / "run.json", {"settings": {}, "steps": {"train": {}}})
        with pytest.raises(InputError, match=r"not finished \(evaluate, artefacts not done\)"):
            read_run(run)
        write_json(run / "run.json", {"settings": {"preset": "demo"}, "steps": dict.fromkeys(STEPS, {})})
        write_json(run / "metrics.json", {"task": "segmentation"})
        with pytest.raises(InputError, match="settings lack modality, feature_size, input_shape"):
            read_run(run)

    def test_weights_of_other_classes(self, make: Make, tmp_path: Path) -> None:
        run = make("classification", "ct", input_shape=[1, 32, 32, 32], classes=["no", "yes"])
        record = read_json(run / "run.json")
        record["settings"]["classes"] = ["a", "b", "c"]
        write_json(run / "run.json", record)
        with pytest.raises(InputError, match=r"head.output.weight has \(2, 24\), the network \(3, 24\)"):
            pack(CT, run, tmp_path)
