import copy
import logging
import math

import pytest
import torch

from medcoss_components.errors import InputError
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.retinanet import ANCHORS, RetinaNetHead

SIZE = (64, 96)
GRIDS = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
PLACES = sum(rows * columns for rows, columns in GRIDS)


def head(**arguments):
    network = RetinaNetHead(**({"channels": (4, 6, 8), "categories": 2, "width": 16} | arguments))
    initialise(network, torch.Generator().manual_seed(1))
    return network


def maps(count=2):
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(count, channels, *grid, generator=generator)
        for channels, grid in zip((4, 6, 8), GRIDS[:3], strict=True)
    ]


def silent(count=1, categories=2):
    """Outputs that give every anchor a probability of almost 0 and leave it where it is."""
    return {
        "classification": [torch.full((count, ANCHORS * categories, *grid), -20.0) for grid in GRIDS],
        "box_regression": [torch.zeros(count, ANCHORS * 4, *grid) for grid in GRIDS],
    }


def target(*boxes, labels=None):
    given = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": given, "labels": torch.tensor(labels if labels is not None else [0] * len(given)).long()}


class TestOutputs:
    def test_one_map_a_level(self):
        outputs = head()(maps())
        assert [tuple(level.shape) for level in outputs["classification"]] == [(2, 18, *grid) for grid in GRIDS]
        assert [tuple(level.shape) for level in outputs["box_regression"]] == [(2, 36, *grid) for grid in GRIDS]

    def test_bfloat16_gives_float32_outputs_that_are_near(self):
        network, given = head(), maps()
        exact = network(given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = network(given)
        for name, levels in outputs.items():
            for level, near in zip(levels, exact[name], strict=True):
                assert level.dtype == torch.float32
                torch.testing.assert_close(level, near, atol=0.1, rtol=0.1)

    def test_gradients_of_the_last_levels_repeat_in_bfloat16(self):
        """Images of 64 pixels, whose level 6 is one pixel; memory that nobody wrote would differ, or be huge."""
        network, found = head(width=32), []
        small = [level[..., :1, :1] for level in maps()]
        for _ in range(20):
            network.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outputs = network(small)
            sum(level.square().sum() for level in outputs["box_regression"]).backward()
            found.append(network.pyramid.extra_blocks.p7.weight.grad.clone())
        assert all(torch.equal(found[0], gradient) for gradient in found) and found[0].abs().max() < 1e4

    def test_inputs_of_a_transformer_are_normalised(self):
        network, given = head(norm_inputs=True).eval(), maps()
        louder = network([7 * level + 3 for level in given])
        for level, expected in zip(louder["classification"], network(given)["classification"], strict=True):
            torch.testing.assert_close(level, expected, atol=1e-3, rtol=1e-3)

    def test_monais_own_heads_give_the_same(self):
        network = head().eval()
        levels = [torch.randn(1, 16, *grid) for grid in GRIDS]
        network.pyramid.forward = lambda given: dict(enumerate(levels))
        outputs = network(maps())
        for level, expected in zip(outputs["classification"], network.classification(levels), strict=True):
            torch.testing.assert_close(level, expected)
        for level, expected in zip(outputs["box_regression"], network.regression(levels), strict=True):
            torch.testing.assert_close(level, expected)


class TestFirstValues:
    def test_every_anchor_starts_with_a_probability_of_one_in_a_hundred(self):
        network = head()
        assert torch.sigmoid(network.classification.cls_logits.bias).allclose(torch.tensor(0.01))
        probabilities = torch.cat([level.sigmoid().flatten() for level in network(maps())["classification"]])
        assert probabilities.mean().item() == pytest.approx(0.01, abs=0.001)

    def test_spread_of_the_kernels(self):
        network = head(width=64)
        assert network.classification.conv[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert network.regression.bbox_reg.weight.std().item() == pytest.approx(0.01, rel=0.05)

    def test_the_generator_gives_every_value(self):
        network = head(norm_inputs=True)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(float("nan"))
        initialise(network, torch.Generator().manual_seed(1))
        expected = head(norm_inputs=True).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())

    def test_nothing_is_computed_without_a_device(self):
        with torch.device("meta"):
            assert all(value.is_meta for value in head().state_dict().values())


class TestAnchors:
    """Boxes of outputs that move nothing are the anchors."""

    def candidates(self, **arguments):
        return head(**arguments).candidates(silent())[0]

    def test_as_many_as_places_times_nine(self):
        assert self.candidates().shape == (PLACES * 9, 6)

    def test_first_place(self):
        """Squares of 16, 20.16 and 25.4 pixels around (4, 4), halves rounded; twice as high as wide, and as wide."""
        boxes = self.candidates()[:9, :4]
        assert boxes[3:6].tolist() == [[-4, -4, 12, 12], [-6, -6, 14, 14], [-9, -9, 17, 17]]
        sides = (boxes[:, 2:] - boxes[:, :2]).tolist()
        assert sides[0] == [12, 22] and sides[6] == [22, 12]

    def test_the_next_place_is_one_stride_to_the_right(self):
        boxes = self.candidates()[:, :4]
        assert (boxes[9:18] - boxes[:9]).unique(dim=0).tolist() == [[8, 0, 8, 0]]
        assert (boxes[12 * 9 : 13 * 9] - boxes[:9]).unique(dim=0).tolist() == [[0, 8, 0, 8]]

    def test_first_place_of_the_last_level(self):
        box = self.candidates()[-9:, :4][3]
        assert box.tolist() == [64 - 128, 64 - 128, 64 + 128, 64 + 128]

    def test_scale(self):
        assert self.candidates(anchor_scale=4)[3, :4].tolist() == [-12, -12, 20, 20]


def spoken(network, row, column, anchor, category=1, logit=5.0, shift=(0.0, 0.0, 0.0, 0.0)):
    """Outputs in which one anchor of the finest level speaks; shift: rows, columns, log height, log width."""
    outputs = silent()
    outputs["classification"][0][0, anchor * network.categories + category, row, column] = logit
    outputs["box_regression"][0][0, anchor * 4 : anchor * 4 + 4, row, column] = torch.tensor(shift)
    return outputs


class TestDetections:
    def test_one_anchor_speaks(self):
        """Place (3, 5): middle x = 44, y = 28; the first anchor is 12 wide and 22 high."""
        network = head()
        (found,) = network.detections(spoken(network, 3, 5, 0), SIZE)
        assert found["boxes"].tolist() == [[38, 17, 50, 39]] and found["boxes"].dtype == torch.float32
        assert found["labels"].tolist() == [1] and found["labels"].dtype == torch.int64
        assert found["scores"].item() == pytest.approx(1 / (1 + math.exp(-5.0)), abs=1e-6)

    def test_shifts(self):
        """Half a height down, a quarter of a width to the right, twice as high: y 39 +- 22, x 47 +- 6."""
        network = head()
        outputs = spoken(network, 3, 5, 0, shift=(0.5, 0.25, math.log(2), 0.0))
        (found,) = network.detections(outputs, SIZE)
        torch.testing.assert_close(found["boxes"], torch.tensor([[41.0, 17.0, 53.0, 61.0]]))

    def test_boxes_end_at_the_image(self):
        network = head()
        (found,) = network.detections(spoken(network, 0, 11, 3), SIZE)
        assert found["boxes"].tolist() == [[84, 0, 96, 12]]

    def test_overlapping_boxes_of_one_category(self):
        network = head()
        outputs = spoken(network, 3, 5, 3)
        outputs["classification"][0][0, 3 * 2 + 1, 3, 6] = 4.0  # 16 x 16, 8 to the right: IoU 128 / 384
        outputs["classification"][0][0, 4 * 2 + 1, 3, 5] = 3.0  # 20 x 20 around the first: IoU 256 / 400
        (found,) = network.detections(outputs, SIZE)
        assert found["boxes"].tolist() == [[36, 20, 52, 36], [44, 20, 60, 36]]
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
        strict = head(nms_threshold=0.3)
        assert len(strict.detections(outputs, SIZE)[0]["boxes"]) == 1
        outputs["classification"][0][0, 3 * 2, 3, 5] = 2.0  # the other category, at the first place
        assert sorted(strict.detections(outputs, SIZE)[0]["labels"].tolist()) == [0, 1]

    def test_threshold_and_number(self):
        network = head(score_threshold=0.9)
        assert len(network.detections(spoken(network, 3, 5, 0, logit=2.0), SIZE)[0]["boxes"]) == 0
        assert len(network.detections(spoken(network, 3, 5, 0, logit=3.0), SIZE)[0]["boxes"]) == 1
        assert len(head(score_threshold=0.0, boxes_per_image=7).detections(silent(), SIZE)[0]["boxes"]) == 7

    def test_images_of_a_batch_do_not_mix(self):
        network = head(score_threshold=0.0, boxes_per_image=5).eval()
        outputs = network(maps())
        together = network.detections(outputs, SIZE)
        for row in range(2):
            own = {name: [level[row : row + 1] for level in levels] for name, levels in outputs.items()}
            (alone,) = network.detections(own, SIZE)
            assert all(torch.equal(alone[key], together[row][key]) for key in alone)

    def test_candidates_are_those_that_are_selected_from(self):
        network = head(score_threshold=0.0, nms_threshold=1.0, boxes_per_image=1).eval()
        outputs = network(maps(1))
        (found,), (candidates,) = network.detections(outputs, SIZE), network.candidates(outputs)
        best = candidates[:, 4:].max(dim=1).values.argmax()
        clipped = candidates[best, :4].clamp(min=0).minimum(torch.tensor([96.0, 64.0, 96.0, 64.0]))
        torch.testing.assert_close(found["boxes"][0], clipped)
        torch.testing.assert_close(found["scores"][0], candidates[best, 4:].max())


class TestLoss:
    def test_background_alone(self):
        """Every anchor at p = 1 / 2: 0.75 * 0.5^2 * log 2 for each anchor and category."""
        network, outputs = head(), silent()
        outputs["classification"] = [torch.zeros_like(level) for level in outputs["classification"]]
        loss = network.loss(outputs, [target()])
        assert loss["classification"].item() == pytest.approx(PLACES * 9 * 2 * 0.75 * 0.25 * math.log(2), rel=1e-5)
        assert loss["box_regression"].item() == 0.0

    def test_a_box_on_an_anchor_costs_nothing_where_it_speaks(self):
        """The anchor of place (3, 5) is the box; whichever others are matched as well would have to move."""
        network = head()
        quiet = network.loss(spoken(network, 3, 5, 3), [target([36, 20, 52, 36], labels=[0])])
        right = network.loss(spoken(network, 3, 5, 3), [target([36, 20, 52, 36], labels=[1])])
        assert right["classification"] < quiet["classification"]
        torch.testing.assert_close(right["box_regression"], quiet["box_regression"])

    def test_against_loops(self):
        """Focal loss and smooth L1, anchor by anchor, with the matches of MONAI's matcher."""
        network = head()
        outputs = network(maps(1))
        boxes = target([10, 12, 44, 40], [50, 5, 70, 55], labels=[1, 0])
        candidates = network.candidates(silent())[0, :, :4]
        places = [rows * columns for rows, columns in GRIDS]
        matcher = network._detector().proposal_matcher
        _, matches = matcher(boxes["boxes"][:, [1, 0, 3, 2]], candidates[:, [1, 0, 3, 2]], places, 9)
        logits, shifts = network._flat(outputs)
        scores, sides, matched = 0.0, 0.0, int((matches >= 0).sum())
        for number, match in enumerate(matches.tolist()):
            for category in range(2):
                p = logits[0, number, category].sigmoid().item()
                true = match >= 0 and int(boxes["labels"][match]) == category
                scores -= 0.25 * (1 - p) ** 2 * math.log(p) if true else 0.75 * p**2 * math.log(1 - p)
            if match >= 0:
                left, top, right, bottom = candidates[number].tolist()
                width, height = right - left, bottom - top
                x0, y0, x1, y1 = boxes["boxes"][match].tolist()
                goal = (
                    ((y0 + y1) - (top + bottom)) / 2 / height,
                    ((x0 + x1) - (left + right)) / 2 / width,
                    math.log((y1 - y0) / height),
                    math.log((x1 - x0) / width),
                )
                for value, wanted in zip(shifts[0, number].tolist(), goal, strict=True):
                    far = abs(value - wanted)
                    sides += far - 0.5 / 9 if far >= 1 / 9 else 0.5 * 9 * far**2
        assert matched > 2
        loss = network.loss(outputs, [boxes])
        assert loss["classification"].item() == pytest.approx(scores / matched, rel=1e-4)
        assert loss["box_regression"].item() == pytest.approx(sides / matched, rel=1e-4)

    @pytest.mark.parametrize("boxes", [(), ([10, 12, 44, 40],)])
    def test_every_parameter_gets_a_gradient(self, boxes):
        """DistributedDataParallel stops where one gets none, also in a batch without a box."""
        network = head(norm_inputs=True)
        sum(network.loss(network(maps()), [target(), target(*boxes)]).values()).backward()
        assert [name for name, value in network.named_parameters() if value.grad is None] == []

    def test_the_gradient_agrees_with_finite_differences(self):
        network, boxes = head().double(), [target([10, 12, 44, 40])]
        given = [level.double() for level in maps(1)]
        bias = network.regression.bbox_reg.bias

        def value():
            outputs = network(given)
            return network.loss(outputs, boxes)["box_regression"]

        network.loss(network(given), boxes)["box_regression"].backward()
        largest = int(bias.grad.abs().argmax())
        values = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                bias[largest] += step
                values.append(value().item())
                bias[largest] -= step
        assert bias.grad[largest].item() == pytest.approx((values[0] - values[1]) / 2e-2, rel=0.02)

    def test_outputs_that_are_not_finite_give_a_loss_that_is_not(self):
        network, outputs = head(), silent()
        outputs["classification"][0][0, 0, 0, 0] = float("nan")
        assert not network.loss(outputs, [target([10, 12, 44, 40])])["classification"].isfinite()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ([], "targets: 0 for 1 images"),
            ([target([10, 12, 44, 40], labels=[2])], r"labels \[2\] must be in \[0, 2\)"),
            ([target([10, 12, 44, 40], labels=[-1])], r"labels \[-1\]"),
            ([target([10, 12, 10, 40])], "left < right"),
            ([target([10, 12, float("nan"), 40])], "finite"),
            ([{"boxes": torch.ones(2, 3), "labels": torch.zeros(2)}], r"boxes \(2, 3\) must be \(n, 4\)"),
            ([target([10, 12, 44, 40], labels=[0, 1])], r"labels \(2,\)"),
        ],
    )
    def test_other_targets_are_refused(self, wrong, message):
        with pytest.raises(InputError, match=message):
            head().loss(silent(), wrong)

    def test_monai_leaves_the_root_logger_as_it_was(self, monkeypatch):
        monkeypatch.setattr(logging.root, "handlers", [])
        head().loss(silent(), [target([10, 12, 44, 40])])
        assert logging.root.handlers == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 12}, "head_width=12 must be a multiple of 8"),
        ({"width": 8}, "at least 16"),
        ({"anchor_scale": 0}, "anchor_scale=0 must be above 0"),
        ({"boxes_per_image": 0}, "boxes_per_image=0"),
        ({"score_threshold": 1.0}, "score_threshold=1.0"),
        ({"nms_threshold": 0.0}, "nms_threshold=0.0"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        head(**arguments)


def test_a_copy_gives_the_same():
    network = head().eval()
    twin = copy.deepcopy(network)
    assert torch.equal(twin.candidates(twin(maps())), network.candidates(network(maps())))
