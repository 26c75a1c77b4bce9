"""Augmented pictures and boxes stay together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcoss_components.data.detection_inputs import DetectionTransform, ZoomFlip
from medcoss_components.data.synthetic_detection import tight_box
from medcoss_components.data.transforms import to_model_input
from medcoss_components.errors import InputError

SHAPE = (3, 32, 48)


def painted(*boxes):
    """A picture (1, 1, 32, 48) that is bright in its boxes, and its target."""
    picture = torch.zeros(1, 1, *SHAPE[1:])
    for left, top, right, bottom in boxes:
        picture[..., top:bottom, left:right] = 200
    return picture, {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.ones(len(boxes)).long(),
    }


def batch_of(targets, raw, *, step=0, rows=None, count=None):
    rows = torch.arange(len(raw)) if rows is None else rows
    return {"raw": raw, "target": targets, "epoch": 1, "step": step, "count": count or len(raw), "rows": rows}


@pytest.fixture
def batch():
    pairs = [painted((4, 6, 12, 20)), painted((20, 8, 44, 30)), painted(), painted((0, 0, 6, 6), (30, 20, 40, 30))]
    return batch_of([target for _, target in pairs], torch.cat([picture for picture, _ in pairs]).to(torch.uint8))


def transform(**options):
    return DetectionTransform(**{"modality": "xray", "input_shape": SHAPE, "seed": 5} | options)


class TestRecord:
    def test_flip_by_hand(self):
        picture, target = painted((4, 6, 12, 20))
        record = ZoomFlip(window=None, flip=torch.tensor([True]))
        (moved,) = record.move([target], SHAPE[1:])
        assert moved["boxes"].tolist() == [[36.0, 6.0, 44.0, 20.0]] and moved["labels"].tolist() == [1]
        assert tight_box(record.apply(picture)[0, 0].numpy() > 0) == [36, 6, 44, 20]
        assert torch.equal(record.apply(record.apply(picture)), picture)

    def test_zoom_by_hand(self):
        """The window of 16 x 24 pixels from (4, 8) fills the picture: twice the size."""
        picture, target = painted((12, 8, 20, 16))
        record = ZoomFlip(window=torch.tensor([[4.0, 8.0, 16.0, 24.0]]), flip=torch.tensor([False]))
        (moved,) = record.move([target], SHAPE[1:])
        assert moved["boxes"].tolist() == [[8.0, 8.0, 24.0, 24.0]]
        assert tight_box(record.apply(picture)[0, 0].numpy() > 100) == [8, 8, 24, 24]

    def test_what_leaves_the_picture(self):
        """A box is cut at the edge, and gone when its centre is outside."""
        _, target = painted((4, 8, 20, 16), (0, 8, 12, 16), (40, 0, 48, 4))
        record = ZoomFlip(window=torch.tensor([[4.0, 8.0, 16.0, 24.0]]), flip=torch.tensor([False]))
        (moved,) = record.move([target], SHAPE[1:])
        assert moved["boxes"].tolist() == [[0.0, 8.0, 24.0, 24.0]] and len(moved["labels"]) == 1

    @pytest.mark.parametrize("seed", range(5))
    def test_boxes_follow_the_picture(self, seed):
        picture, target = painted((18, 10, 30, 22))
        record = transform(scale=[0.7, 1.4], seed=seed).draw(1, SHAPE[1:], 0, 0)
        (moved,) = record.move([target], SHAPE[1:])
        found = tight_box(record.apply(picture)[0, 0].numpy() > 100)
        np.testing.assert_allclose(found, moved["boxes"][0].numpy(), atol=0.75)


class TestTransform:
    def test_evaluation_is_that_of_the_modality(self, batch):
        inputs = transform().evaluation(batch["raw"], "cpu")
        assert torch.equal(inputs, to_model_input(transform().modality, batch["raw"]))

    def test_none(self, batch):
        inputs, targets = transform(augmentation="none").training(batch, "cpu")
        assert torch.equal(inputs, transform().evaluation(batch["raw"], "cpu"))
        assert all(torch.equal(one["boxes"], two["boxes"]) for one, two in zip(targets, batch["target"], strict=True))

    def test_flips_move_pictures_and_boxes(self, batch):
        inputs, targets = transform().training(batch, "cpu")
        plain = transform().evaluation(batch["raw"], "cpu")
        flipped = [not torch.equal(one, two) for one, two in zip(inputs, plain, strict=True)]
        assert any(flipped)
        for number, target in enumerate(targets[:2]):
            assert tight_box(inputs[number, 0].numpy() > 0) == target["boxes"][0].tolist()
        assert targets[2]["boxes"].shape == (0, 4) and targets[2]["labels"].dtype == torch.int64

    def test_standardised(self, batch):
        inputs, _ = transform(intensity={"standardise": "image"}).training(batch, "cpu")
        torch.testing.assert_close(inputs[[0, 1, 3]].mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        assert not inputs[2].any()

    @pytest.mark.parametrize("scale", [None, [0.8, 1.25]])
    def test_ranks_apply_their_rows_of_one_draw(self, batch, scale):
        whole, targets = transform(scale=scale).training(batch, "cpu")
        for rows in (torch.arange(2), torch.tensor([3, 2])):
            own = batch_of([batch["target"][row] for row in rows], batch["raw"][rows], rows=rows, count=4)
            inputs, part = transform(scale=scale).training(own, "cpu")
            assert torch.equal(inputs, whole[rows])
            assert all(torch.equal(one["boxes"], targets[row]["boxes"]) for one, row in zip(part, rows, strict=True))

    def test_seed_and_step_decide(self, batch):
        options = {"scale": [0.5, 2.0], "augmentation": "none"}
        first, again = (transform(**options).training(batch, "cpu")[0] for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.equal(first, transform(**options | {"seed": 6}).training(batch, "cpu")[0])
        assert not torch.equal(first, transform(**options).training(batch | {"step": 1}, "cpu")[0])

    def test_zooms_lie_within_their_range(self):
        record = transform(scale=[0.5, 2.0], augmentation="none").draw(2000, SHAPE[1:], 0, 0)
        zoom = SHAPE[1] / record.window[:, 2]
        assert 0.5 <= zoom.min() < 0.52 and 1.9 < zoom.max() <= 2.0 and not record.flip.any()
        assert zoom.log().mean().abs() < 0.05  # as often larger as smaller
        inside = record.window[zoom > 1]
        assert (inside[:, :2] >= 0).all() and (inside[:, 0] + inside[:, 2] <= SHAPE[1] + 1e-3).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"augmentation": "mirror"}, "augmentation='mirror': a detection task may have one of none, flip"),
            ({"scale": [2, 1]}, r"scale=\[2, 1\]: must be \[low, high\] in order within 0.25 and 4"),
            ({"scale": [1]}, r"scale=\[1\]"),
            ({"scale": [0.1, 1]}, r"scale=\[0.1, 1\]"),
            ({"modality": "ct", "input_shape": None}, "boxes are of 2D pictures, this one has 3 axes"),
            ({"intensity": {"standardise": "batch"}}, "standardise must be 'image', got 'batch'"),
        ],
    )
    def test_wrong_settings(self, options, message):
        with pytest.raises(InputError, match=message):
            transform(**options)
