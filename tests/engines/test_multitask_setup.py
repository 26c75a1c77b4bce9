"""What a config says about tasks, made into parts; and one evaluator over all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from medcoss_components.data.modalities import get_modality
from medcoss_components.engines.multitask_evaluation import MultiTaskEvaluator, RoundSelection
from medcoss_components.engines.multitask_setup import (
    _case_preparation,
    check_tasks,
    feature_memory,
    multitask_datasets,
    multitask_evaluator,
    multitask_loader,
    multitask_losses,
    multitask_preprocessing,
    network_tasks,
)
from medcoss_components.engines.task_evaluators import SegmentationEvaluator
from medcoss_components.errors import InputError

MODALITY = {"name": "xray", "input_shape": [3, 32, 48]}
CHEST = {"kind": "classification", "data_manifest": "m.json", "classes": ["a", "b"]}


class TestCheckTasks:
    @pytest.mark.parametrize(
        ("tasks", "message"),
        [
            ({}, "tasks: at least one is needed"),
            ({"Chest X": CHEST}, "tasks: 'Chest X' must be a letter"),
            ({"mean": CHEST}, "must not be 'mean'"),
            ({"chest": {}}, "task 'chest': kind must be one of classification, segmentation, detection, received None"),
            ({"chest": {"kind": "detection"}}, "task 'chest': a task of kind detection needs categories"),
            ({"chest": CHEST | {"regions": {}}}, "task 'chest': 'regions' is no key; known: augmentation, batch_size"),
        ],
    )
    def test_refused(self, tasks, message):
        with pytest.raises(InputError, match=message):
            check_tasks(tasks)

    def test_network_is_told_kind_names_and_settings_of_the_head(self):
        tasks = {"chest": CHEST, "lungs": {"kind": "segmentation", "regions": {"l": [1]}, "head": {"head_width": 8}}}
        assert network_tasks(tasks) == {
            "chest": {"kind": "classification", "classes": ["a", "b"]},
            "lungs": {"kind": "segmentation", "regions": {"l": [1]}, "head_width": 8},
        }


class TestData:
    def test_every_kind_of_task(self, multitask_tasks, store_dir):
        options = {"tasks": multitask_tasks, "modality": MODALITY, "store_dir": store_dir, "workers": 1}
        training = multitask_datasets(**options)
        assert {name: type(data).__name__ for name, data in training.items()} == {
            "size": "ClassificationDataset",
            "organs": "SegmentationDataset",
            "spots": "DetectionDataset",
        }
        assert [len(data) for data in training.values()] == [8, 5, 6]
        assert training["organs"].shape(0) == (32, 48)  # prepared to the size of the input

    def test_task_without_items_is_left_out_and_own_keys_go_first(self, multitask_tasks, store_dir):
        tasks = {"size": multitask_tasks["size"], "other": multitask_tasks["size"] | {"label_ratio": 0.5}}
        options = {"modality": MODALITY, "store_dir": store_dir, "workers": 1}
        found = multitask_datasets(tasks=tasks, label_ratio=1.0, **options)
        assert len(found["size"]) == 8 and len(found["other"]) == 4
        path = Path(multitask_tasks["spots"]["data_manifest"])
        content = json.loads(path.read_text())
        alone = path.with_name("alone.json")
        alone.write_text(json.dumps(content | {"testing": []}))
        tasks = {"size": multitask_tasks["size"], "spots": multitask_tasks["spots"] | {"data_manifest": str(alone)}}
        assert list(multitask_datasets(tasks=tasks, split="testing", optional=True, **options)) == ["size"]

    def test_segmentation_follows_the_settings_of_all_as_far_as_they_are_for_masks(self, multitask_tasks, store_dir):
        made = []
        for own in ({}, {"percentiles": None}):
            tasks = {"organs": multitask_tasks["organs"] | {"preparation": own}}
            shared = {"fit": "stretch", "percentiles": [2, 98]}
            options = {"modality": MODALITY, "store_dir": store_dir, "workers": 1, "preparation": shared}
            made.append(multitask_datasets(tasks=tasks, **options)["organs"].store.index["preparation"])
        assert made[0] == {"spacing": None, "size": [32, 48], "percentiles": [2, 98]}
        assert made[1] == {"spacing": None, "size": [32, 48], "percentiles": None}

    def test_a_spacing_of_ones_own_takes_the_place_of_the_size(self):
        made = _case_preparation(get_modality(MODALITY), {"percentiles": [2, 98]}, {"spacing": [1.0, 1.0]})
        assert made == {"spacing": [1.0, 1.0], "size": None, "percentiles": [2, 98]}

    def test_batch_sizes_and_schedule(self, multitask_tasks, store_dir):
        tasks = multitask_tasks | {"spots": multitask_tasks["spots"] | {"batch_size": 1}}
        data = multitask_datasets(tasks=tasks, modality=MODALITY, store_dir=store_dir, workers=1)
        loader = multitask_loader(tasks=tasks, datasets=data, batch_size=3, cyclic=False, reshuffled=False, rounds=2)
        assert [len(entry) for entry in loader.loaders.values()] == [3, 2, 6] and not loader.cyclic
        assert loader.loaders["organs"].reader.foreground_share == 0

    def test_preprocessing(self):
        tasks = {
            "chest": CHEST | {"augmentation": "mirror", "intensity": {"standardise": "image"}},
            "lungs": {"kind": "segmentation", "regions": {"lungs": [1]}},
            "spots": {"kind": "detection", "categories": ["a"]},
        }
        found = multitask_preprocessing(tasks=tasks, modality=MODALITY, intensity={"divide": 255}, seed=4)
        assert {name: entry.augmentation for name, entry in found.items()} == {
            "chest": "mirror",
            "lungs": "flip",
            "spots": "flip",
        }
        assert found["chest"].intensity == {"standardise": "image"} and found["lungs"].intensity == {"divide": 255}
        assert list(found["lungs"].regions) == ["lungs"] and {entry.seed for entry in found.values()} == {4}

    def test_weights_of_the_losses(self):
        tasks = {
            "chest": CHEST | {"class_weights": "balanced"},
            "lungs": {"kind": "segmentation", "regions": {"a": [1], "b": [2]}, "region_weights": {"a": 1, "b": 2}},
            "spots": {"kind": "detection", "categories": ["a"], "box_weight": 0.5},
        }
        heads = {"spots": SimpleNamespace(loss=lambda outputs, targets: {})}
        data = {"chest": SimpleNamespace(targets=[0, 0, 0, 1], classes=("a", "b"))}
        found = multitask_losses(tasks=tasks, datasets=data, network=SimpleNamespace(heads=heads))
        assert found["chest"].weights.tolist() == [1, 3] and found["lungs"].weights.tolist() == [1, 2]
        assert found["spots"].box_weight == 0.5

    def test_memory(self, tmp_path):
        assert feature_memory(memory=False, output_dir=tmp_path) is None
        assert feature_memory(memory=True, output_dir=tmp_path).folder == tmp_path / "features"
        assert feature_memory(memory=True, output_dir=tmp_path, features_dir=tmp_path / "f").folder == tmp_path / "f"


class Fixed:
    """An evaluator that always finds the same."""

    def __init__(self, network, metrics, **labels):
        self.network, self.found, self.dataset = network, metrics, SimpleNamespace(**labels)
        self.state = SimpleNamespace(device="cpu")

    def evaluate(self):
        return SimpleNamespace(metrics=lambda: self.found, cases=("a", "b"))

    def check_metric(self, name, argument):
        assert name in self.found, argument


class TestEvaluator:
    def build(self, multitask, values=(0.5, 0.25, math.nan), **options):
        network = multitask().network
        return MultiTaskEvaluator(
            evaluators={
                "size": Fixed(network, {"auc": values[0], "accuracy": 1.0, "auc/small": 0.1}, classes=1),
                "organs": Fixed(network, {"dice": values[1]}, regions=1),
                "spots": Fixed(network, {"map": values[2]}, categories=1),
            },
            device="cpu",
            **options,
        )

    def test_numbers_of_all_tasks(self, multitask):
        evaluator = self.build(multitask, values=(0.5, 0.25, 0.75))
        evaluator.run()
        assert evaluator.state.metrics == {
            "size": 0.5, "size/auc": 0.5, "size/accuracy": 1.0, "size/auc/small": 0.1,
            "organs": 0.25, "organs/dice": 0.25, "spots": 0.75, "spots/map": 0.75, "mean": 0.5,
        }  # fmt: skip
        assert list(evaluator.datasets) == ["size", "organs", "spots"]

    def test_mean_leaves_out_what_is_undefined(self, multitask):
        evaluator = self.build(multitask)
        evaluator.run()
        assert evaluator.state.metrics["mean"] == 0.375 and math.isnan(evaluator.state.metrics["spots"])
        evaluator = self.build(multitask, values=(math.nan,) * 3)
        evaluator.run()
        assert math.isnan(evaluator.state.metrics["mean"])

    def test_headline_of_ones_own(self, multitask):
        evaluator = self.build(multitask, headlines={"size": "accuracy"})
        evaluator.run()
        assert evaluator.state.metrics["size"] == 1.0
        assert evaluator.names == {"size": "accuracy", "organs": "dice", "spots": "map"}

    def test_unknown_headline_refused_at_once(self, multitask):
        real = multitask().validator
        with pytest.raises(InputError, match="task 'organs': headline: 'map' is no metric of this task; .* dice"):
            MultiTaskEvaluator(evaluators=real.evaluators, headlines={"organs": "map"})

    def test_every_metric_of_every_kind_is_known(self, multitask):
        real = multitask().validator
        real.run()
        for name in set(real.state.metrics) - {"mean", *real.evaluators}:
            task, _, metric = name.partition("/")
            if not metric.endswith("_undefined"):
                real.evaluators[task].check_metric(metric, "headline")

    @pytest.mark.parametrize("evaluators", [{}, {"mean": None}])
    def test_names_refused(self, evaluators):
        with pytest.raises(InputError, match="need at least one task, none called 'mean'"):
            MultiTaskEvaluator(evaluators=evaluators)

    def test_real_evaluators(self, multitask):
        evaluator = multitask().validator
        evaluator.set_distances(False)
        evaluator.run()
        metrics = evaluator.state.metrics
        assert {"size", "organs", "spots", "mean", "size/auc", "organs/dice", "spots/map"} <= set(metrics)
        assert "organs/hd95" not in metrics
        segmentation = evaluator.evaluators["organs"]
        assert isinstance(segmentation, SegmentationEvaluator) and not segmentation.distances
        evaluator.set_distances(True)
        assert segmentation.distances

    def test_distances_are_computed_when_they_are_the_headline(self, multitask):
        evaluator = multitask().validator
        evaluator.headlines["organs"] = "surface_dice"
        evaluator.set_distances(False)
        assert evaluator.evaluators["organs"].distances

    def test_none_without_data(self):
        assert multitask_evaluator(tasks={}, datasets={}, network=None, preprocessing={}, device="cpu") is None


class TestRoundSelection:
    @pytest.mark.parametrize(("keep", "kept"), [("last", 3), ("best", 2)])
    def test_which_round_is_kept(self, keep, kept, tmp_path, multitask):
        scores = iter([0.1, 0.9, 0.5])
        evaluator = SimpleNamespace(state=SimpleNamespace(metrics={}))
        evaluator.run = lambda: evaluator.state.metrics.update(mean=next(scores))
        selection = RoundSelection(keep=keep, folder=tmp_path, evaluator=evaluator)
        network = multitask().network
        for number in (1, 2, 3):
            state = SimpleNamespace(epoch=number, max_epochs=3, iteration=number)
            selection(SimpleNamespace(state=state, model=network))
        assert selection.best[0] == kept and [path.name for path in tmp_path.glob("best*")] == [f"best-{kept}.pt"]
        assert [row["score"] for row in selection.rows] == [0.1, 0.9, 0.5]

    def test_other_word_refused(self, tmp_path):
        with pytest.raises(InputError, match="keep must be one of last, best, received 'first'"):
            RoundSelection(keep="first", folder=tmp_path, evaluator=None)
