"""Evaluators against explicit loops over samples and cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer

from medcoss_components.data.masks import read_mask
from medcoss_components.data.regions import region_masks
from medcoss_components.engines import task_evaluators
from medcoss_components.engines.task_evaluators import square_pixels, window_inferer
from medcoss_components.errors import InputError
from medcoss_components.evaluation.results import CasePicture
from medcoss_components.evaluation.segmentation import case_metrics


class MaskInferer:
    """Gives the prepared masks as logits, case by case: a network that knows everything on the prepared grid."""

    def __init__(self, dataset):
        self.masks = [region_masks(np.array(dataset.case(row).mask), dataset.regions, dimension=2) for row in range(3)]
        self.calls = 0

    def __call__(self, inputs, network):
        masks = self.masks[self.calls % len(self.masks)]
        self.calls += 1
        return torch.from_numpy(masks)[None].float() * 20 - 10


@pytest.fixture
def two_ranks(monkeypatch):
    """Call it after the loaders are made: a second rank then has seen the same."""

    def start():
        monkeypatch.setattr(task_evaluators.idist, "get_world_size", lambda: 2)
        monkeypatch.setattr(task_evaluators.idist, "all_gather", lambda share: [share, share])

    return start


class TestClassification:
    @pytest.mark.parametrize("name", ["report", "xray", "ct"])
    def test_equals_a_loop_over_the_samples(self, name, make_task):
        parts = make_task("classification", name)
        result, dataset = parts.validator.evaluate(), parts.validator.dataset
        parts.network.eval()
        for row in range(len(dataset)):
            sample = dataset[row]
            with torch.no_grad():
                logits = parts.network(sample[dataset.modality.content_key][None])[0]
            assert result.probabilities[row] == pytest.approx(logits.double().softmax(0).numpy(), abs=1e-6)
            assert result.targets[row] == sample["label"] and result.cases[row] == sample["id"]
        assert result.groups == tuple(dataset.groups) and result.classes == ("small", "large")

    def test_metrics_are_those_of_the_result(self, make_task):
        evaluator = make_task("classification", "xray").validator
        evaluator.run()
        assert evaluator.state.metrics == pytest.approx(evaluator.result().metrics(), nan_ok=True)
        assert {"accuracy", "auc", "f1", "ece", "sensitivity/large"} <= set(evaluator.state.metrics)

    def test_runs_again_as_in_federated_rounds(self, make_task):
        evaluator = make_task("classification", "xray").validator
        first = evaluator.evaluate()
        evaluator.run(3)
        assert np.array_equal(evaluator.result().probabilities, first.probabilities)

    def test_rows_of_one_case_are_averaged(self, make_task):
        parts = make_task("classification", "ct")
        single = parts.validator.evaluate()
        dataset = parts.validator.dataset
        dataset.cases, dataset.groups = ["first", "other", "first"], ["p", "q", "p"]
        result = parts.validator.evaluate()
        assert (result.cases, result.groups) == (("first", "other"), ("p", "q"))
        assert result.probabilities[0] == pytest.approx((single.probabilities[0] + single.probabilities[2]) / 2)
        assert result.targets.tolist() == single.targets[:2].tolist()

    def test_rows_that_two_ranks_have_seen_count_once(self, two_ranks, make_task):
        evaluator = make_task("classification", "xray").validator
        two_ranks()
        assert len(evaluator.evaluate().cases) == 3

    def test_no_result_before_the_first_run(self, make_task):
        with pytest.raises(InputError, match="call run"):
            make_task("classification", "xray").validator.result()

    def test_network_is_in_evaluation_mode(self, make_task):
        parts = make_task("classification", "xray")
        parts.network.train()
        parts.validator.run()
        assert not parts.network.training

    def test_an_error_is_passed_on(self, make_task):
        parts = make_task("classification", "xray")
        with torch.no_grad():
            parts.network.head.output.bias.fill_(float("nan"))
        with pytest.raises(InputError, match="not finite"):
            parts.validator.run()
        assert parts.validator.bar.disable  # nothing is drawn in tests; closed bars are disabled too


class TestSegmentation:
    def test_equals_a_loop_over_the_cases(self, make_task):
        """The file's grid is twice the prepared one along each axis; here the prepared one counts."""
        parts = make_task("segmentation", "xray")
        evaluator, dataset = parts.validator, parts.validator.dataset
        evaluator.inferer = SimpleInferer()
        result = evaluator.evaluate()
        parts.network.eval()
        for row in range(len(dataset)):
            sample, case = dataset[row], dataset.case(row)
            with torch.no_grad():
                prediction = parts.network(sample["image"][None])[0] >= 0
            inside = case.geometry.crop
            expected = case_metrics(
                inside(prediction), inside(sample["label"]).bool(), regions=dataset.regions, spacing=None
            )
            assert result.rows[row] == pytest.approx(expected, nan_ok=True)
        assert result.cases == tuple(dataset.ids) and result.groups == tuple(dataset.groups)
        assert result.spacing_unit == "voxel"

    def test_knowing_everything_scores_1_on_the_prepared_grid(self, make_task):
        evaluator = make_task("segmentation", "xray").validator
        evaluator.inferer = MaskInferer(evaluator.dataset)
        metrics = evaluator.evaluate().metrics()
        assert (metrics["dice"], metrics["hd95"], metrics["surface_dice"]) == (1.0, 0.0, 1.0)
        assert evaluator.state.metrics["dice/core"] == 1.0

    def test_source_geometry_compares_with_the_mask_of_the_file(self, make_task):
        evaluator = make_task("segmentation", "xray", source_geometry=True).validator
        evaluator.inferer = MaskInferer(evaluator.dataset)
        result = evaluator.evaluate()
        for row in range(3):
            case = evaluator.dataset.case(row)
            mask = read_mask(case.mask_path, 2)
            assert mask.shape == (16, 36) and case.image.shape[1:] == (8, 18)
            target = region_masks(mask, evaluator.dataset.regions, dimension=2)
            restored = case.geometry.restore(torch.from_numpy(evaluator.inferer.masks[row]).float() * 20 - 10)
            expected = case_metrics(restored.numpy() >= 0, target, regions=evaluator.dataset.regions, spacing=None)
            assert result.rows[row]["dice/organ"] == pytest.approx(expected["dice/organ"], abs=0.05)
            assert result.rows[row]["volume/organ"] > 2 * mask.size / 100  # pixels of the file, not of the small grid
        assert 0.7 < result.metrics()["dice/organ"] < 1.0

    def test_volumes_are_measured_in_millimetres(self, make_task):
        result = make_task("segmentation", "ct").validator.evaluate()
        assert result.spacing_unit == "mm"
        assert [picture.note[:5] for picture in result.pictures] == ["slice"] * 3

    def test_worst_pictures_first(self, make_task):
        evaluator = make_task("segmentation", "xray").validator
        evaluator.pictures = 2
        result = evaluator.evaluate()
        scores = sorted((row["dice/organ"] + row["dice/core"]) / 2 for row in result.rows)
        assert [picture.score for picture in result.pictures] == pytest.approx(scores[:2])

    def test_pictures_keep_the_proportions_of_the_body(self):
        """A plane of 2 x 3 pixels of 3 x 1 mm: each row three times."""
        picture = CasePicture(
            case="a",
            image=np.arange(6, dtype=np.float32).reshape(2, 3),
            target=np.array([[[True, False, False], [False] * 3]]),
            prediction=np.zeros((1, 2, 3), bool),
            score=0.0,
        )
        wide = square_pixels(picture, (3.0, 1.0))
        assert wide.image[:, 0].tolist() == [0, 0, 0, 3, 3, 3] and wide.image.shape == (6, 3)
        assert wide.target[0, :, 0].tolist() == [True] * 3 + [False] * 3 and wide.prediction.shape == (1, 6, 3)
        assert square_pixels(picture, (1.0, 2.0)).image.tolist() == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]]
        assert square_pixels(picture, (1.0, 1.05)) is picture

    def test_a_probability_at_the_threshold_is_outside_as_in_predictions(self, make_task):
        evaluator = make_task("segmentation", "ct").validator
        evaluator.inferer = lambda inputs, network: torch.zeros(1, 2, *inputs.shape[2:])
        assert all(row["volume/organ"] == row["volume/core"] == 0 for row in evaluator.evaluate().rows)

    def test_distances_can_be_left_out(self, make_task):
        evaluator = make_task("segmentation", "ct").validator
        evaluator.distances = False
        assert "hd95" not in evaluator.evaluate().metrics()

    def test_cases_that_two_ranks_have_seen_count_once(self, two_ranks, make_task):
        evaluator = make_task("segmentation", "xray").validator
        two_ranks()
        result = evaluator.evaluate()
        assert len(result.cases) == 3 and len(result.pictures) == 3

    def test_windows_by_default(self, make_task):
        evaluator = make_task("segmentation", "ct").validator
        assert isinstance(evaluator.inferer, SlidingWindowInferer)
        assert tuple(evaluator.inferer.roi_size) == (6, 8, 12) and evaluator.inferer.overlap == 0.5
        assert window_inferer(evaluator.network).mode == "gaussian"
