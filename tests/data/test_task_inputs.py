import numpy as np
import pytest
import torch

from medcoss_components.data.modalities import get_modality
from medcoss_components.data.task_inputs import Flips, TaskTransform
from medcoss_components.data.transforms import to_model_input
from medcoss_components.errors import InputError

XRAY = get_modality("xray", input_shape=(3, 8, 12))
CT = get_modality("ct", input_shape=(1, 4, 6, 8))
RICORD = {"clip": [-1024, 325], "subtract": 158.58, "divide": 324.70}


def batch_of(raw, target, step=0, rows=None, count=None):
    rows = torch.arange(len(raw)) if rows is None else rows
    return {"raw": raw, "target": target, "epoch": 2, "step": step, "count": count or len(raw), "rows": rows}


@pytest.fixture
def pictures():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 1, 8, 12), dtype=np.uint8))


@pytest.fixture
def volumes():
    return torch.from_numpy(np.random.default_rng(0).integers(-1024, 1025, (5, 1, 4, 6, 8)).astype(np.int16))


class TestIntensity:
    def test_the_modalitys_rule_by_default(self, pictures):
        transform = TaskTransform(modality="xray", input_shape=(3, 8, 12))
        assert torch.equal(transform.evaluation(pictures, "cpu"), to_model_input(XRAY, pictures))

    def test_paper_ct(self):
        raw = torch.tensor([-1024, 0, 325, 1024], dtype=torch.int16).repeat_interleave(48).reshape(1, 1, 4, 6, 8)
        inputs = TaskTransform(modality=CT, intensity=RICORD).evaluation(raw, "cpu")
        expected = [(value - 158.58) / 324.70 for value in (-1024, 0, 325, 325)]
        assert inputs[0, 0, :, 0, 0].tolist() == pytest.approx(expected)

    def test_channels_are_repeated(self, pictures):
        inputs = TaskTransform(modality=XRAY, intensity={"divide": 255}).evaluation(pictures, "cpu")
        assert inputs.shape == (5, 3, 8, 12)
        torch.testing.assert_close(inputs, to_model_input(XRAY, pictures))

    def test_standardised_images(self, pictures):
        inputs = TaskTransform(modality=XRAY, intensity={"standardise": "image"}).evaluation(pictures, "cpu")
        values = pictures[1].numpy().astype(np.float64)
        expected = (values - values.mean()) / (values.std() + 1e-6)
        assert inputs.shape == (5, 3, 8, 12) and inputs.dtype == torch.float32
        torch.testing.assert_close(inputs[1], torch.from_numpy(expected).float().expand(3, 8, 12))

    def test_clipped_before_it_is_standardised(self, pictures):
        spoilt = pictures.clone().clamp(max=200)
        spoilt[:, :, 0, 0], limited = 255, spoilt.clone()
        limited[:, :, 0, 0] = 200
        intensity = {"clip": [0, 200], "standardise": "image"}
        transform = TaskTransform(modality=XRAY, intensity=intensity)
        assert torch.equal(transform.evaluation(spoilt, "cpu"), transform.evaluation(limited, "cpu"))

    def test_text(self):
        transform = TaskTransform(modality="report", input_shape=(14,))
        ids = torch.arange(28, dtype=torch.int32).reshape(2, 14)
        inputs, target = transform.training(batch_of(ids, torch.tensor([1, 0])), "cpu")
        assert inputs.dtype == target.dtype == torch.int64
        assert torch.equal(inputs, ids.long())

    def test_shapes(self, volumes):
        wrong = volumes[..., :7]
        for intensity in (None, RICORD):
            with pytest.raises(InputError, match=r"\(1, 4, 6, 8\), got \(1, 4, 6, 7\)"):
                TaskTransform(modality=CT, intensity=intensity).evaluation(wrong, "cpu")
            segmenting = TaskTransform(modality=CT, intensity=intensity, regions={"a": 1})
            assert segmenting.evaluation(wrong, "cpu").shape == wrong.shape
            with pytest.raises(InputError, match=r"got \(2, 4, 6, 8\)"):
                segmenting.evaluation(volumes.expand(5, 2, 4, 6, 8), "cpu")

    @pytest.mark.parametrize(
        ("intensity", "message"),
        [
            ({"scale": 3}, "'scale' is no key; known: clip, subtract, divide, standardise"),
            ({"clip": [5, 5]}, r"got \[5, 5\]"),
            ({"clip": [5]}, r"got \[5\]"),
            ({"divide": 0}, "got 0"),
            ({"standardise": "batch"}, "standardise must be 'image', got 'batch'"),
            ({"standardise": None}, "standardise must be 'image', got None"),
            ({"standardise": "image", "divide": 2}, "standardise sets mean and scale itself, divide=2"),
        ],
    )
    def test_wrong_settings(self, intensity, message):
        with pytest.raises(InputError, match=message):
            TaskTransform(modality=CT, intensity=intensity)

    def test_text_has_none(self):
        with pytest.raises(InputError, match="report is text"):
            TaskTransform(modality="report", intensity={"divide": 2})


class TestRegions:
    def test_masks(self):
        transform = TaskTransform(modality=CT, regions={"organ": [1, 2], "core": 2})
        mask = np.random.default_rng(0).integers(0, 3, (2, 4, 6, 8)).astype(np.uint8)
        masks = transform.region_masks(mask)
        assert np.array_equal(masks, np.stack([mask > 0, mask == 2], axis=1))
        assert torch.equal(transform.region_masks(torch.from_numpy(mask)), torch.from_numpy(masks))
        assert transform.region_masks(mask[0]).shape == (2, 4, 6, 8)

    def test_none_given(self):
        with pytest.raises(InputError, match="regions: none were given"):
            TaskTransform(modality=CT).region_masks(np.zeros((4, 6, 8), np.uint8))


class TestAugmentation:
    def test_none(self, pictures):
        transform = TaskTransform(modality=XRAY, augmentation="none")
        inputs, target = transform.training(batch_of(pictures, torch.arange(5)), "cpu")
        assert torch.equal(inputs, transform.evaluation(pictures, "cpu"))
        assert target.tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("augmentation", ["mirror", "flip", None])
    def test_mask_and_volume_move_alike(self, volumes, augmentation):
        mask = (volumes[:, 0] > 0).to(torch.uint8)
        transform = TaskTransform(modality=CT, augmentation=augmentation, regions={"high": 1})
        inputs, target = transform.training(batch_of(volumes, mask), "cpu")
        assert target.shape == (5, 1, 4, 6, 8) and target.dtype == torch.float32
        assert torch.equal(inputs > 0, target.bool())
        assert not torch.equal(inputs, transform.evaluation(volumes, "cpu"))

    def test_flip_is_left_and_right_only(self, volumes):
        transform = TaskTransform(modality=CT, augmentation="flip")
        before = transform.evaluation(volumes, "cpu")
        after, _ = transform.training(batch_of(volumes, torch.zeros(5)), "cpu")
        kinds = [
            "same" if torch.equal(one, other) else "flipped" if torch.equal(one, other.flip(-1)) else "else"
            for one, other in zip(before, after, strict=True)
        ]
        assert set(kinds) == {"same", "flipped"}

    def test_crops_of_mask_and_picture_agree(self):
        """A picture that is its own mask: after the crop, far from edges, both say the same."""
        picture = torch.zeros(6, 1, 40, 60, dtype=torch.uint8)
        picture[:, :, 10:30, 20:45] = 255
        transform = TaskTransform(modality=get_modality("xray", input_shape=(3, 40, 60)), regions={"bright": "any"})
        inputs, target = transform.training(batch_of(picture, picture[:, 0]), "cpu")
        assert inputs.min() >= 0 and inputs.max() <= 1
        assert set(target.unique().tolist()) == {0.0, 1.0}
        assert ((inputs[:, :1] > 0.5) == target.bool()).float().mean() > 0.98
        assert not torch.equal(target[:, 0] > 0, picture[:, 0] > 0)

    def test_windows_of_another_size_than_the_input(self):
        picture = torch.randint(0, 255, (2, 1, 20, 14), dtype=torch.uint8)
        transform = TaskTransform(modality=XRAY, regions={"any": "any"})
        inputs, target = transform.training(batch_of(picture, picture[:, 0]), "cpu")
        assert inputs.shape == (2, 3, 20, 14) and target.shape == (2, 1, 20, 14)

    def test_limits_follow_the_intensity(self, pictures):
        normalised = {"subtract": 255 / 2, "divide": -255 / 2}
        transform = TaskTransform(modality=XRAY, intensity=normalised)
        inputs, _ = transform.training(batch_of(pictures, torch.zeros(5)), "cpu")
        assert inputs.min() >= -1 and inputs.max() <= 1

    def test_standardised_images_have_no_limits(self, pictures):
        transform = TaskTransform(modality=XRAY, intensity={"standardise": "image"})
        inputs, _ = transform.training(batch_of(pictures, torch.zeros(5)), "cpu")
        assert inputs.min() < -1 and inputs.max() > 1

    @pytest.mark.parametrize("augmentation", ["mirror", "resized_crop_flip"])
    def test_ranks_apply_their_rows_of_one_draw(self, pictures, augmentation):
        transform = TaskTransform(modality=XRAY, augmentation=augmentation, seed=4)
        whole, _ = transform.training(batch_of(pictures, torch.zeros(5)), "cpu")
        parts = [
            transform.training(batch_of(pictures[rows], torch.zeros(len(rows)), rows=rows, count=5), "cpu")[0]
            for rows in (torch.arange(3), torch.arange(3, 5))
        ]
        assert torch.equal(whole, torch.cat(parts))

    def test_seed_and_step_decide(self, pictures):
        def draw(seed, step):
            transform = TaskTransform(modality=XRAY, seed=seed)
            return transform.training(batch_of(pictures, torch.zeros(5), step=step), "cpu")[0]

        assert torch.equal(draw(0, 3), draw(0, 3))
        assert not torch.equal(draw(0, 3), draw(0, 4)) and not torch.equal(draw(0, 3), draw(1, 3))

    def test_flips_by_hand(self):
        values = torch.arange(12.0).reshape(2, 1, 2, 3)
        record = Flips(torch.tensor([[True, False], [False, False]]))
        assert record.apply(values)[0, 0].tolist() == [[3, 4, 5], [0, 1, 2]]
        assert torch.equal(record.apply(values)[1], values[1])
        assert torch.equal(record.rows(torch.tensor([1])).apply(values[1:]), values[1:])

    @pytest.mark.parametrize(("modality", "name"), [(CT, "resized_crop_flip"), ("report", "flip"), (XRAY, "rotate")])
    def test_not_for_the_dimension(self, modality, name):
        with pytest.raises(InputError, match=f"augmentation='{name}'"):
            TaskTransform(modality=modality, augmentation=name)
