import math

import pytest
import torch
from torch.nn import functional

from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.data.transforms import (
    CROP_RATIO,
    CropFlip,
    Mirror,
    apply_augmentation,
    draw_augmentation,
    standardise_images,
    to_model_input,
)
from medcoss_components.errors import InputError

WIDE = get_modality("xray", input_shape=(3, 20, 30))
BLOCK = get_modality("mri", input_shape=(1, 4, 6, 8))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def oracle_crop(image, box, flip, mode):
    """Crop, resize and flip one (C, H, W) image with torch's own pieces."""
    top, left, height, width = (int(value) for value in box)
    crop = image[None, :, top : top + height, left : left + width]
    resized = functional.interpolate(crop, tuple(image.shape[1:]), mode=mode, align_corners=False)[0]
    return resized.flip(2) if flip else resized


def oracle_interior(box, shape):
    """Output rows and columns whose bicubic kernel stays inside the box: two source pixels from each edge."""
    rows, columns = shape
    margins = math.ceil(2.5 * rows / box[2]), math.ceil(2.5 * columns / box[3])
    return slice(margins[0], rows - margins[0]), slice(margins[1], columns - margins[1])


class TestToModelInput:
    def test_grey_bytes_become_three_channels_in_unit_range(self):
        raw = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
        inputs = to_model_input(get_modality("xray", input_shape=(3, 1, 3)), raw)
        assert inputs.shape == (1, 3, 1, 3) and inputs.dtype == torch.float32
        for channel in range(3):
            assert torch.allclose(inputs[0, channel, 0], torch.tensor([0.0, 0.2, 1.0]))

    def test_colours_stay(self):
        raw = torch.tensor([255, 0, 102], dtype=torch.uint8).view(1, 3, 1, 1)
        inputs = to_model_input(get_modality("pathology", input_shape=(3, 1, 1)), raw)
        assert torch.allclose(inputs.flatten(), torch.tensor([1.0, 0.0, 0.4]))

    def test_hounsfield_is_divided_by_1024(self):
        raw = torch.tensor([-1024, 0, 512, 1024], dtype=torch.int16).view(1, 1, 1, 2, 2)
        inputs = to_model_input(get_modality("ct", input_shape=(1, 1, 2, 2)), raw)
        assert inputs.flatten().tolist() == [-1.0, 0.0, 0.5, 1.0]

    def test_zscore_is_read_as_it_is(self):
        raw = torch.tensor([-1.5, 0.25], dtype=torch.float16).view(1, 1, 1, 1, 2)
        inputs = to_model_input(get_modality("mri", input_shape=(1, 1, 1, 2)), raw)
        assert inputs.dtype == torch.float32 and inputs.flatten().tolist() == [-1.5, 0.25]

    @pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.int32])
    def test_ids_become_int64(self, dtype):
        raw = torch.tensor([[2, 40000, 0]]).to(dtype)
        inputs = to_model_input(get_modality("report", input_shape=(3,)), raw)
        assert inputs.dtype == torch.int64 and inputs.tolist() == [[2, 40000, 0]]

    def test_another_shape_is_refused(self):
        with pytest.raises(InputError, match=r"xray are stored as \(1, 20, 30\), got \(1, 30, 20\)"):
            to_model_input(WIDE, torch.zeros(2, 1, 30, 20, dtype=torch.uint8))


class TestStandardise:
    def test_by_hand(self):
        """0, 2, 4, 6 have mean 3 and standard deviation sqrt(5)."""
        images = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 2, 2)
        expected = torch.tensor([-3.0, -1.0, 1.0, 3.0]) / (5**0.5 + 1e-6)
        assert torch.allclose(standardise_images(images).flatten(), expected)

    def test_every_image_by_itself_whatever_its_scale(self):
        images = torch.rand(4, 3, 6, 8, generator=generator())
        scaled = images * torch.tensor([1.0, 255.0, 7.0, 0.1]).view(4, 1, 1, 1) + 5
        torch.testing.assert_close(standardise_images(scaled), standardise_images(images), atol=1e-3, rtol=1e-3)
        outputs = standardise_images(images)
        torch.testing.assert_close(outputs.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(outputs.std(dim=(1, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)
        assert torch.equal(outputs[1:2], standardise_images(images[1:2]))

    def test_images_of_one_value_become_zero(self):
        images = torch.stack([torch.full((1, 33, 35), 0.1), torch.rand(1, 33, 35, generator=generator())])
        outputs = standardise_images(images)
        assert not outputs[0].any() and outputs[1].any() and outputs.isfinite().all()

    def test_half_precision_is_standardised_in_single(self):
        assert standardise_images(torch.rand(2, 1, 4, 4).to(torch.bfloat16)).dtype == torch.float32


class TestDraw:
    def test_boxes_follow_area_and_ratio(self):
        record = draw_augmentation(get_modality("xray"), 2000, generator())
        top, left, height, width = record.box.unbind(1)
        assert (top >= 0).all() and (left >= 0).all()
        assert (top + height <= 224).all() and (left + width <= 224).all()
        area, ratio = height * width / 224**2, width / height
        assert 0.19 < area.min() < 0.22 and 0.95 < area.max() <= 1
        assert CROP_RATIO[0] * 0.98 < ratio.min() and ratio.max() < CROP_RATIO[1] * 1.02
        assert abs(ratio.log().mean()) < 0.02  # wide and high boxes are equally frequent
        assert 0.45 < record.flip.float().mean() < 0.55

    def test_boxes_are_whole_pixels(self):
        record = draw_augmentation(WIDE, 50, generator())
        assert torch.equal(record.box, record.box.round())

    def test_nothing_fits_takes_the_central_box(self):
        """In 10 x 100 a box of ratio <= 4/3 and a fifth of the area is never wider than 10 rows allow."""
        record = draw_augmentation(get_modality("xray", input_shape=(3, 10, 100)), 40, generator())
        central = torch.tensor([0.0, 43.0, 10.0, 13.0])
        assert (record.box == central).all(dim=1).any()
        assert (record.box[:, 2] <= 10).all()

    @pytest.mark.parametrize("modality", [WIDE, BLOCK], ids=lambda m: m.name)
    def test_same_generator_same_draw(self, modality):
        first, second = (draw_augmentation(modality, 6, generator(3)) for _ in range(2))
        assert all(torch.equal(getattr(first, n), getattr(second, n)) for n in ("flip",))
        assert not torch.equal(first.flip, draw_augmentation(modality, 6, generator(4)).flip)

    def test_limits_come_with_the_intensity_rule(self):
        assert draw_augmentation(WIDE, 1, generator()).limits == (0.0, 1.0)

    def test_unknown_rule_and_mode_are_refused(self):
        broken = get_modality("xray")
        odd = Modality(**{**broken.to_dict(), "name": "odd"})
        object.__setattr__(odd, "augmentation", "warp")
        with pytest.raises(InputError, match="modality odd.*'warp'"):
            draw_augmentation(odd, 1, generator())
        with pytest.raises(InputError, match="mode='nearest'"):
            draw_augmentation(broken, 1, generator(), mode="nearest")


class TestCropFlip:
    @pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
    def test_equals_cropping_and_resizing_each_sample(self, mode):
        inputs = torch.rand(12, 3, 20, 30, generator=generator(1), dtype=torch.float64)
        record = draw_augmentation(WIDE, 12, generator(2), mode=mode)
        output = apply_augmentation(inputs, CropFlip(box=record.box, flip=record.flip, limits=None, mode=mode))
        assert record.flip.any() and not record.flip.all()
        for sample in range(12):
            expected = oracle_crop(inputs[sample], record.box[sample], record.flip[sample], mode)
            rows, columns = oracle_interior(record.box[sample].tolist(), (20, 30))
            assert expected[:, rows, columns].numel() > 0
            assert torch.allclose(output[sample, :, rows, columns], expected[:, rows, columns], atol=2e-5)

    def test_the_whole_image_is_unchanged(self):
        inputs = torch.rand(2, 3, 20, 30, generator=generator())
        record = CropFlip(box=torch.tensor([[0.0, 0, 20, 30]] * 2), flip=torch.tensor([False, True]))
        output = apply_augmentation(inputs, record)
        assert torch.allclose(output[0], inputs[0], atol=1e-5)
        assert torch.allclose(output[1], inputs[1].flip(2), atol=1e-5)

    def test_overshoot_is_clamped(self):
        inputs = (torch.arange(30) >= 10).float().expand(1, 3, 20, 30)
        record = CropFlip(box=torch.tensor([[2.0, 3, 10, 13]]), flip=torch.tensor([False]))
        free = CropFlip(box=record.box, flip=record.flip, limits=None)
        assert apply_augmentation(inputs, free).max() > 1.001
        output = apply_augmentation(inputs, record)
        assert output.min() == 0 and output.max() == 1

    def test_input_is_not_overwritten(self):
        inputs = torch.rand(2, 3, 20, 30)
        before = inputs.clone()
        apply_augmentation(inputs, draw_augmentation(WIDE, 2, generator()))
        assert torch.equal(inputs, before)


class TestMirror:
    def test_each_axis_is_reversed_where_drawn(self):
        inputs = torch.arange(8 * 4 * 6 * 8.0).view(8, 1, 4, 6, 8)
        flip = torch.tensor([[z, y, x] for z in (False, True) for y in (False, True) for x in (False, True)])
        output = apply_augmentation(inputs, Mirror(flip=flip))
        for sample in range(8):
            axes = [axis + 1 for axis in range(3) if flip[sample, axis]]
            assert torch.equal(output[sample], inputs[sample].flip(axes))

    def test_probability_is_one_half_per_axis(self):
        flip = draw_augmentation(BLOCK, 2000, generator()).flip
        assert flip.shape == (2000, 3)
        assert ((flip.float().mean(0) - 0.5).abs() < 0.04).all()


@pytest.mark.parametrize("modality", [get_modality("report"), WIDE, BLOCK], ids=lambda m: m.name)
class TestRecordContract:
    def inputs(self, modality, count=6):
        return torch.rand(count, *modality.input_shape, generator=generator(9))

    @pytest.mark.parametrize("index", [[4, 1], [True, False, False, True, False, False]])
    def test_rows_of_the_record_are_rows_of_the_result(self, modality, index):
        inputs, record, index = self.inputs(modality), draw_augmentation(modality, 6, generator(5)), torch.tensor(index)
        part = apply_augmentation(inputs[index], record.rows(index))
        assert torch.allclose(part, apply_augmentation(inputs, record)[index])

    def test_shape_and_dtype_stay(self, modality):
        inputs = self.inputs(modality)
        output = apply_augmentation(inputs, draw_augmentation(modality, 6, generator()))
        assert output.shape == inputs.shape and output.dtype == inputs.dtype

    def test_another_batch_size_is_refused(self, modality):
        with pytest.raises(InputError, match="drawn for 5 samples, the batch holds 6"):
            apply_augmentation(self.inputs(modality), draw_augmentation(modality, 5, generator()))


def test_text_is_left_alone():
    ids = torch.arange(6).view(2, 3)
    record = draw_augmentation(get_modality("report"), 2, generator())
    assert apply_augmentation(ids, record) is ids
