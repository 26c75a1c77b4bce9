"""Detection through the engines: its loss, its evaluation in the pixels of the files, a whole run that resumes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Events

from medcoss_components.data.detection import detection_dataset
from medcoss_components.data.detection_inputs import DetectionTransform
from medcoss_components.data.synthetic_detection import synthetic_detection
from medcoss_components.data.task_loader import DetectionLoader
from medcoss_components.engines.detection import DetectionEvaluator, detection_loss, found_boxes
from medcoss_components.engines.finetuning import FineTuner
from medcoss_components.engines.finetuning_run import FineTuning, evaluate_task
from medcoss_components.engines.handlers import PolynomialDecay
from medcoss_components.engines.optimisation import finetuning_optimizer
from medcoss_components.engines.setup import task_network
from medcoss_components.engines.task_losses import as_float32, task_of
from medcoss_components.engines.trained_settings import check_outputs
from medcoss_components.errors import InputError
from medcoss_components.networks.xray_tasks import XrayDetectionModel
from medcoss_components.tracking import figures
from medcoss_components.weights import read_weights

SHAPE = (3, 64, 64)
CATEGORIES = ("small", "large")
SOURCE = (96, 80)


class Crash(RuntimeError):
    """What a test throws."""


class Oracle(torch.nn.Module):
    """Finds what it is told to: ``answers`` are taken one by one; ``seen`` are the sizes that it was asked for."""

    categories = CATEGORIES

    def __init__(self, answers):
        super().__init__()
        self.answers, self.seen = list(answers), []
        self.scale = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        maps = self.scale * images[:, :1]
        return {"classification": [maps], "box_regression": [maps]}

    def detections(self, outputs, image_size):
        self.seen.append(image_size)
        return [self.answers.pop(0) for _ in outputs["classification"][0]]

    def loss(self, outputs, targets):
        """The image's mean, and how many boxes it has."""
        ((maps,), (sides,)) = (outputs[name] for name in ("classification", "box_regression"))
        count = sum(len(target["labels"]) for target in targets)
        return {"classification": maps.mean(), "box_regression": count + 0 * sides.sum()}


def knowing(dataset, score=0.9):
    """The true boxes of every picture as a network gives them."""
    return [target | {"scores": torch.full((len(target["labels"]),), score)} for target in dataset.targets]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Training, validation and testing data of six, three and three pictures."""
    folder = tmp_path_factory.mktemp("boxes")
    manifest = synthetic_detection(folder, count=6, validation=3, testing=3, categories=CATEGORIES, shape=SOURCE)
    make = {"manifest": manifest, "input_shape": SHAPE, "categories": CATEGORIES, "store_dir": folder / "store"}
    return {split: detection_dataset(**make, split=split, workers=1) for split in ("training", "validation", "testing")}


@pytest.fixture
def make_parts(data):
    """``make_parts(**options of the trainer)``: a tiny detection task."""

    def build(seed=0, **options):
        network = XrayDetectionModel(
            backbone="resnet_demo",
            input_shape=SHAPE,
            categories=CATEGORIES,
            head_width=16,
            score_threshold=0.001,
            boxes_per_image=5,
        )
        network = task_network(network=network, seed=seed)
        preprocessing = DetectionTransform(
            modality="xray", input_shape=SHAPE, intensity={"standardise": "image"}, scale=[0.8, 1.25], seed=seed
        )
        shared = {"device": "cpu", "network": network, "preprocessing": preprocessing, "precision": "float32"}
        trainer = FineTuner(
            **(shared | {"max_epochs": 2, "seed": seed} | options),
            train_data_loader=DetectionLoader(data["training"], batch_size=3, seed=seed),
            optimizer=finetuning_optimizer(network=network, learning_rate=1e-3),
            loss_function=detection_loss(network=network),
            train_handlers=[PolynomialDecay()],
        )

        def evaluator(split):
            loader = DetectionLoader(data[split], batch_size=2, shuffle=False)
            return DetectionEvaluator(**shared, val_data_loader=loader, categories=CATEGORIES, threshold=0.011)

        return SimpleNamespace(
            trainer=trainer, network=network, validator=evaluator("validation"), tester=evaluator("testing")
        )

    return build


@pytest.fixture
def evaluate(data):
    """``evaluate(network, **options)``: an evaluator of the validation data."""

    def build(network, **options):
        return DetectionEvaluator(
            device="cpu",
            val_data_loader=DetectionLoader(data["validation"], batch_size=2, shuffle=False),
            network=network,
            preprocessing=DetectionTransform(modality="xray", input_shape=SHAPE),
            precision="float32",
            **({"categories": CATEGORIES} | options),
        )

    return build


def build_run(parts, folder, **options):
    defaults = {"evaluator": parts.validator, "tester": parts.tester, "selection": "map", "tracking": False}
    return FineTuning(trainer=parts.trainer, output_dir=folder, log_interval=1, **(defaults | options))


class TestLoss:
    targets = ({"labels": torch.zeros(2)}, {"labels": torch.zeros(0)})

    def outputs(self):
        maps = torch.tensor([1.0, 4.0])[:, None, None, None].expand(2, 1, 3, 3).clone().requires_grad_()
        return {"classification": [maps], "box_regression": [maps.detach()]}

    def test_images_are_compared_alone_and_averaged(self):
        term = detection_loss(network=Oracle([]), box_weight=0.5)(self.outputs(), self.targets)
        assert (term.kind, term.total.item(), term.count.item()) == ("detection", 5.0, 2.0)
        (sides,) = term.added
        assert (sides.kind, float(sides.total), float(sides.count)) == ("boxes", 1.0, 2.0)  # 0.5 * (2 + 0)

    def test_has_a_gradient(self):
        outputs = self.outputs()
        detection_loss(network=Oracle([]))(outputs, self.targets).total.backward()
        assert outputs["classification"][0].grad.sum() == pytest.approx(2.0)

    def test_real_network_equals_a_loop(self, make_parts, data):
        parts = make_parts()
        batch = next(iter(parts.trainer.data_loader))
        inputs, targets = parts.trainer.preprocessing.training(batch, "cpu")
        parts.network.eval()
        term = detection_loss(network=parts.network)(parts.network(inputs), targets)
        alone = [
            parts.network.loss(parts.network(image[None]), [target])
            for image, target in zip(inputs, targets, strict=True)
        ]
        assert term.total.item() == pytest.approx(sum(part["classification"].item() for part in alone), rel=1e-4)
        assert term.added[0].total.item() == pytest.approx(sum(p["box_regression"].item() for p in alone), rel=1e-4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"network": torch.nn.Linear(1, 1)}, "Linear has no loss"),
            ({"network": Oracle([]), "box_weight": 0}, "box_weight=0"),
            ({"network": Oracle([]), "box_weight": float("nan")}, "box_weight=nan"),
        ],
    )
    def test_wrong(self, options, message):
        with pytest.raises(InputError, match=message):
            detection_loss(**options)

    def test_kind_of_data(self):
        kinds = [task_of(SimpleNamespace(**{name: ()})) for name in ("classes", "regions", "categories")]
        assert kinds == ["classification", "segmentation", "detection"]

    def test_float32(self):
        outputs = as_float32({"classification": [torch.zeros(1, dtype=torch.bfloat16)]})
        assert outputs["classification"][0].dtype == torch.float32
        assert as_float32(torch.zeros(1, dtype=torch.float16)).dtype == torch.float32


class TestEvaluator:
    def test_knowing_everything(self, evaluate, data):
        network = Oracle(knowing(data["validation"]))
        evaluator = evaluate(network)
        result = evaluator.evaluate()
        metrics = evaluator.state.metrics
        assert [metrics[name] for name in ("map", "ar100", "froc", "sensitivity")] == pytest.approx([1.0] * 4)
        assert metrics["false_positives"] == 0.0
        assert (result.cases, result.groups) == (tuple(data["validation"].ids), tuple(data["validation"].groups))
        assert network.seen == [(64, 64)] * 2

    def test_boxes_are_those_of_the_file(self, evaluate, data):
        """96 x 80 pixels stand as 64 x 53 in the middle of 64 x 64."""
        result = evaluate(Oracle(knowing(data["validation"]))).evaluate()
        for found, true in zip(result.predictions, data["validation"].source_targets, strict=True):
            order = np.argsort(found.boxes[:, 0])
            expected = true["boxes"].numpy()
            assert found.boxes[order] == pytest.approx(expected[np.argsort(expected[:, 0])], abs=1e-3)
            assert (found.boxes[:, 2] <= SOURCE[1]).all() and (found.boxes[:, 3] <= SOURCE[0]).all()

    def test_boxes_in_the_filled_margin_are_no_mistakes(self, evaluate, data):
        """They lie nowhere in the file, and predictions leave them out."""
        answers = knowing(data["validation"])
        margin = {"boxes": torch.tensor([[0.0, 4, 3, 60]]), "labels": torch.tensor([0]), "scores": torch.tensor([0.99])}
        answers[0] = {name: torch.cat([margin[name].to(values.dtype), values]) for name, values in answers[0].items()}
        result = evaluate(Oracle(answers)).evaluate()
        assert (result.metrics()["map"], result.metrics()["false_positives"]) == pytest.approx((1.0, 0.0))

    def test_metrics_are_known_before_there_are_results(self, evaluate, data):
        evaluator = evaluate(Oracle(knowing(data["validation"])))
        for name in evaluator.evaluate().metrics():
            evaluator.check_metric(name, "selection")
        for wrong in ("ap50", "map/other"):
            with pytest.raises(InputError, match=f"selection: '{wrong}' is no metric .* choose from map, map50"):
                evaluator.check_metric(wrong, "selection")

    def test_pictures_of_the_worst(self, evaluate, data):
        answers = knowing(data["validation"])
        answers[1] = {name: values[:0] for name, values in answers[1].items()}
        result = evaluate(Oracle(answers), pictures=2).evaluate()
        assert [picture.case for picture in result.pictures] == [data["validation"].ids[1], data["validation"].ids[0]]
        worst = result.pictures[0]
        assert (worst.score, len(worst.prediction), worst.image.shape) == (0.0, 0, (64, 64, 3))
        assert worst.target.boxes == pytest.approx(data["validation"].targets[1]["boxes"].numpy())

    def test_the_threshold_decides_what_counts_but_not_the_average_precision(self, evaluate, data):
        answers = knowing(data["validation"], score=0.3)
        metrics = evaluate(Oracle(answers)).evaluate().metrics()
        assert (metrics["map"], metrics["sensitivity"]) == pytest.approx((1.0, 0.0))

    def test_rows_that_two_ranks_have_seen_count_once(self, evaluate, data):
        evaluator = evaluate(Oracle(knowing(data["validation"])))
        first = evaluator.evaluate()
        share = list(enumerate(first.predictions)), first.pictures
        again = evaluator.summarise([share, share])
        assert again.metrics() == pytest.approx(first.metrics(), nan_ok=True)
        assert len(again.pictures) == len(first.pictures) == 3

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"threshold": 0}, r"threshold=0\.0"),
            ({"categories": ("a", "a")}, "different names"),
            ({"categories": ("large", "small")}, r"the data have \['small', 'large'\]"),
        ],
    )
    def test_wrong(self, evaluate, options, message):
        with pytest.raises(InputError, match=message):
            evaluate(Oracle([]), **options)

    def test_not_finite(self):
        outputs = {"classification": [torch.tensor([float("nan")])], "box_regression": [torch.zeros(1)]}
        with pytest.raises(InputError, match="not finite"):
            found_boxes(Oracle([]), outputs, (8, 8))


def result_of(folder):
    """What decides the worth of a run, without times."""
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics = {
        key: value for key, value in metrics.items() if key not in ("training_seconds", "peak_memory_bytes", "name")
    }
    losses = [row[:6] for row in json.loads((folder / "history.json").read_text())["rows"]]
    return (folder / "model.pt").read_bytes(), (folder / "validation.json").read_text(), metrics, losses


class TestRun:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return tmp_path_factory.mktemp("run") / "boxes"

    @pytest.fixture(autouse=True)
    def run(self, folder, make_parts, monkeypatch):
        monkeypatch.setattr(figures, "DPI", 40)
        if not folder.exists():
            build_run(make_parts(), folder, settings={"categories": list(CATEGORIES), "input_shape": list(SHAPE)}).run()

    def test_artefacts(self, folder):
        files = {path.name for path in (folder / "evaluation" / "testing").iterdir()}
        assert {"cases.csv", "boxes.csv", "metrics.json", "REPORT.html", "precision_recall.png", "froc.png"} <= files
        assert {"worst_1.png", "worst_2.png", "worst_3.png"} <= files
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["task"] == "detection" and metrics["network"]["planes"]
        assert {"map", "map50", "map/large", "froc", "sensitivity"} <= set(metrics["testing"])
        assert metrics["first_loss"] > 0 and metrics["selection"] == "map"
        assert set(metrics["intervals"]["testing"]) <= set(metrics["testing"])

    def test_both_losses_are_recorded(self, folder):
        rows = json.loads((folder / "history.json").read_text())["rows"]
        assert {row[3] for row in rows} == {"detection", "boxes"}

    @pytest.mark.parametrize("iteration", (3,))
    def test_interrupted_and_resumed_is_the_same(self, folder, make_parts, tmp_path, iteration):
        crashed = build_run(
            make_parts(),
            tmp_path / "boxes",
            settings={"categories": list(CATEGORIES), "input_shape": list(SHAPE)},
            checkpoint_seconds=0,
        )

        def crash(engine):
            raise Crash

        crashed.trainer.add_event_handler(Events.ITERATION_STARTED(once=iteration + 1), crash)
        with pytest.raises(Crash):
            crashed.run()
        again = build_run(
            make_parts(), tmp_path / "boxes", settings={"categories": list(CATEGORIES), "input_shape": list(SHAPE)}
        )
        again.run()
        assert result_of(tmp_path / "boxes") == result_of(folder)

    def test_weights_serve_the_same_categories_alone(self, folder, make_parts, tmp_path, capsys):
        parts = make_parts(seed=3)
        task_network(network=parts.network, init_weights=folder, parts="all")
        weights = read_weights(folder / "model.pt")
        assert all(torch.equal(value, weights[name]) for name, value in parts.network.state_dict().items())
        metrics = evaluate_task(
            evaluator=parts.tester, output_dir=tmp_path, split="testing", title="boxes", tracking=False
        )
        expected = json.loads((folder / "metrics.json").read_text())["testing"]
        assert metrics == pytest.approx(expected, nan_ok=True)
        assert "testing, 3 cases: map " in capsys.readouterr().out
        other = XrayDetectionModel(
            backbone="resnet_demo", input_shape=SHAPE, categories=["large", "small"], head_width=16
        )
        with pytest.raises(InputError, match=r"categories: .* was trained with \['small', 'large'\]"):
            check_outputs(other, folder)
        larger = XrayDetectionModel(
            backbone="resnet_demo", input_shape=(3, 96, 96), categories=CATEGORIES, head_width=16
        )
        with pytest.raises(InputError, match=r"input_shape: .* was trained with \[3, 64, 64\]"):
            check_outputs(larger, folder)

    def test_a_frozen_encoder(self, make_parts):
        parts = make_parts()
        parts.network.freeze_encoder()
        before = {name: value.clone() for name, value in parts.network.backbone.state_dict().items()}
        parts.trainer.run()
        after = parts.network.backbone.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
