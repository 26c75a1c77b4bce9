import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medcoss_components.data.cases import (
    CaseGeometry,
    default_case_preparation,
    prepare_case,
    resolve_case_preparation,
)
from medcoss_components.data.grids import largest_value_grid, resample, value_counts
from medcoss_components.data.masks import names_mask, read_labelled, read_mask
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.writers import write_nifti, write_picture
from medcoss_components.errors import InputError

CT = get_modality("ct", input_shape=(1, 4, 6, 8))
MRI = get_modality("mri", input_shape=(1, 4, 6, 8))
XRAY = get_modality("xray", input_shape=(3, 20, 30))
PATHOLOGY = get_modality("pathology", input_shape=(3, 20, 30))


def prepare(array, source_spacing=(2.0, 1.0, 1.0), mask=None, modality=CT, minimum=None, **settings):
    resolved = resolve_case_preparation(modality, settings)
    return prepare_case(array, source_spacing, mask=mask, modality=modality, settings=resolved, minimum=minimum)


def ramp(shape, axis, dtype=np.int16):
    """Each voxel holds its index along ``axis``."""
    view = [-1 if number == axis else 1 for number in range(len(shape))]
    return np.broadcast_to(np.arange(shape[axis]).reshape(view), shape).astype(dtype)


class TestSettings:
    def test_defaults_follow_the_rules(self):
        assert default_case_preparation(CT) == {"spacing": None, "percentiles": None}
        assert default_case_preparation(MRI) == {"spacing": None, "percentiles": [0.2, 99.8]}
        assert default_case_preparation(XRAY) == {"spacing": None, "size": None, "percentiles": [0.5, 99.5]}
        assert default_case_preparation(PATHOLOGY)["percentiles"] is None

    def test_later_layers_win(self):
        assert resolve_case_preparation(XRAY, {"size": None}, {"size": (8, 9)})["size"] == [8, 9]
        assert resolve_case_preparation(CT, None, {"spacing": (3, 1.5, 1.5)})["spacing"] == [3, 1.5, 1.5]

    @pytest.mark.parametrize(
        ("modality", "name", "value"),
        [
            (CT, "spacing", [1, 1]),
            (CT, "spacing", [1, 0, 1]),
            (CT, "spacing", [True, 1, 1]),
            (CT, "spacing", 2),
            (XRAY, "size", [20]),
            (XRAY, "size", [20, 1.5]),
            (CT, "percentiles", [5, 5]),
            (CT, "percentiles", ["a", 5]),
        ],
    )
    def test_wrong_values(self, modality, name, value):
        with pytest.raises(InputError) as caught:
            resolve_case_preparation(modality, {name: value})
        assert f"{name}={value!r}" in str(caught.value)

    def test_unknown_names_both_at_once_and_text(self):
        with pytest.raises(InputError, match="'size' is no setting of modality ct; known: spacing, percentiles"):
            resolve_case_preparation(CT, {"size": [3, 3]})
        with pytest.raises(InputError, match=r"spacing=\[1, 1\] or size=\[3, 3\], not both"):
            resolve_case_preparation(XRAY, {"size": [3, 3], "spacing": [1, 1]})
        with pytest.raises(InputError, match="report: text has no segmentation"):
            resolve_case_preparation(get_modality("report"))


class TestGrids:
    def test_linear_growth_by_hand(self):
        """Twice as many samples over the same extent: a quarter step inside, the ends repeated."""
        grown = resample(np.array([[0, 4, 8]], np.int16), (1, 6))
        assert grown.tolist() == [[0, 1, 3, 5, 7, 8]]
        assert resample(np.array([[[0]], [[4]]], np.int16), (4, 1, 1)).ravel().tolist() == [0, 1, 3, 4]

    def test_one_column(self):
        assert resample(np.array([[0], [4]], np.int16), (4, 1)).ravel().tolist() == [0, 1, 3, 4]
        assert resample(np.array([[0], [4]], np.int16), (2, 3)).tolist() == [[0, 0, 0], [4, 4, 4]]

    def test_shrinking_averages(self):
        shrunk = resample(np.arange(48, dtype=np.int16).reshape(4, 2, 6), (2, 2, 6))
        assert shrunk.shape == (2, 2, 6)
        assert shrunk[0, 0, 0] > 0  # not the first sample alone

    def test_many_planes_equal_few(self, monkeypatch):
        array = np.random.default_rng(0).random((9, 5, 7)).astype(np.float32)
        whole = resample(array, (4, 6, 3))
        monkeypatch.setattr("medcoss_components.data.grids.PLANES", 2)
        monkeypatch.setattr("medcoss_components.data.resampling.DEPTH_PIXELS", 5)
        np.testing.assert_allclose(resample(array, (4, 6, 3)), whole, atol=1e-6)

    def test_largest_value_wins_and_ties_go_down(self):
        mask = np.array([[0, 0, 7, 7, 3, 3]], np.uint8)
        assert largest_value_grid(mask, (1, 3)).tolist() == [[0, 7, 3]]
        assert largest_value_grid(np.array([[5, 9]], np.uint8), (1, 1)).tolist() == [[5]]
        assert largest_value_grid(mask, (1, 6)) is mask

    def test_no_value_is_made_up(self):
        mask = np.random.default_rng(0).choice([0, 10, 200], (5, 6, 7)).astype(np.uint8)
        assert set(np.unique(largest_value_grid(mask, (8, 3, 11)))) <= {0, 10, 200}

    def test_counts(self):
        assert value_counts(np.array([[0, 7], [7, 3]], np.uint8)) == {0: 1, 3: 1, 7: 2}


class TestPrepareVolume:
    def test_nothing_to_do(self):
        array, mask = ramp((5, 6, 9), 2) * 10, ramp((5, 6, 9), 0)
        case = prepare(array, mask=mask)
        assert np.array_equal(case.image[0], array)
        assert np.array_equal(case.mask, mask)
        assert (case.image.dtype, case.mask.dtype) == (np.int16, np.uint8)
        assert case.geometry.padding == ((0, 0), (0, 0), (0, 0))
        assert case.geometry.spacing == (2.0, 1.0, 1.0)

    def test_resampled_padded_and_back(self):
        array = ramp((6, 10, 4), 0) * 100
        case = prepare(array, (3.0, 1.0, 1.0), mask=(array > 200).astype(np.uint8), spacing=(1.5, 2.0, 1.0))
        geometry = case.geometry
        assert geometry.resampled_shape == (12, 5, 4)
        assert geometry.padding == ((0, 0), (0, 1), (2, 2))
        assert geometry.shape == case.mask.shape == case.image.shape[1:] == (12, 6, 8)
        assert geometry.spacing == (1.5, 2.0, 1.0)
        assert (case.image[0, :, :, :2] == -1024).all() and (case.mask[:, :, :2] == 0).all()
        assert geometry.crop(case.mask).shape == (12, 5, 4)
        back = geometry.restore((case.mask[None] > 0).astype(np.float32))
        assert np.array_equal(back[0] > 0.5, array > 200)

    def test_intensities(self):
        case = prepare(np.full((4, 6, 8), 3000, np.int16) * ramp((4, 6, 8), 0))
        assert (case.image.min(), case.image.max()) == (0, 1024)
        array = np.random.default_rng(0).normal(50, 9, (5, 6, 8)).astype(np.float32)
        mri = prepare(array, modality=MRI, percentiles=None)
        assert mri.image.dtype == np.float16
        np.testing.assert_allclose(mri.image[0], (array - array.mean()) / array.std(), atol=2e-3)
        assert mri.fill == mri.image.min()

    def test_mri_padding_is_its_lowest_value(self):
        array = np.random.default_rng(0).normal(50, 9, (2, 6, 8)).astype(np.float32)
        case = prepare(array, modality=MRI)
        assert case.geometry.padding[0] == (1, 1)
        assert (case.image[0, 0] == case.geometry.crop(case.image).min()).all()

    @pytest.mark.parametrize(
        ("array", "mask", "message"),
        [
            (np.zeros((4, 4)), None, r"a volume has 3 axes, this one has the shape \(4, 4\)"),
            (np.zeros((4, 6, 8), np.int16), None, "constant, every stored value is 0"),
            (np.full((4, 6, 8), np.nan), None, "192 of 192 values are NaN"),
            (ramp((4, 6, 8), 0), np.zeros((4, 6, 7)), r"mask has the shape \(4, 6, 7\), the image \(4, 6, 8\)"),
        ],
    )
    def test_bad_cases(self, array, mask, message):
        with pytest.raises(InputError, match=message):
            prepare(array, mask=mask)


class TestPrepareImage:
    def test_fitted_inside_with_proportions(self):
        case = prepare(ramp((40, 40), 1, np.uint8), None, modality=XRAY, mask=ramp((40, 40), 0) // 20, size=[20, 30])
        assert case.geometry.resampled_shape == (20, 20)
        assert case.geometry.padding == ((0, 0), (5, 5))
        assert case.image.shape == (1, 20, 30)
        assert (case.geometry.unit, case.geometry.spacing) == ("pixel", (1.0, 1.0))
        assert case.mask[:10, 5:25].max() == 0 and case.mask[10:, 5:25].min() == 1

    def test_colour_and_spacing(self):
        array = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        case = prepare(array, (0.5, 0.5), modality=PATHOLOGY, spacing=(0.25, 0.5))
        assert case.image.shape == (3, 60, 40)
        assert (case.geometry.unit, case.geometry.spacing) == ("mm", (0.25, 0.5))

    def test_native_size_is_padded_to_the_minimum(self):
        array = np.random.default_rng(0).integers(0, 255, (10, 50), dtype=np.uint8)
        case = prepare(array, None, modality=XRAY, minimum=(16, 16))
        assert case.image.shape == (1, 16, 50)

    def test_spacing_without_spacing(self):
        with pytest.raises(InputError, match=r"asks for a spacing of \[1, 1\] mm, but the file carries no spacing"):
            prepare(ramp((40, 40), 1), None, modality=XRAY, spacing=[1, 1])


class TestGeometry:
    GEOMETRY = CaseGeometry(
        source_shape=(4, 10, 6),
        source_spacing=(2.0, 1.0, 1.0),
        resampled_shape=(8, 5, 6),
        padding=((0, 0), (1, 2), (3, 0)),
    )

    def test_there_and_back_as_json(self):
        assert CaseGeometry.from_dict(json.loads(json.dumps(self.GEOMETRY.to_dict()))) == self.GEOMETRY

    def test_both_kinds_keep_their_dtype(self):
        values = np.random.default_rng(0).random((2, 8, 8, 9)).astype(np.float16)
        array, tensor = self.GEOMETRY.restore(values), self.GEOMETRY.restore(torch.from_numpy(values))
        assert (array.shape, array.dtype, tensor.dtype) == ((2, 4, 10, 6), np.float16, torch.float16)
        assert np.array_equal(array, tensor.numpy())

    def test_another_shape(self):
        with pytest.raises(InputError, match=r"must be \(K, \(8, 8, 9\)\), got \(2, 8, 8, 8\)"):
            self.GEOMETRY.restore(np.zeros((2, 8, 8, 8)))


class TestMasks:
    def save(self, path: Path, array, mode=None) -> Path:
        image = Image.fromarray(array) if mode is None else Image.fromarray(array, mode)
        if mode == "P":
            image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        image.save(path)
        return path

    def test_pictures_of_all_kinds(self, tmp_path):
        values = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
        for number, array in enumerate((values, np.stack([values] * 3, -1), values.astype(np.uint16))):
            assert np.array_equal(read_mask(self.save(tmp_path / f"{number}.png", array), 2), values)
        assert np.array_equal(read_mask(self.save(tmp_path / "p.png", values, "P"), 2), values)
        with_alpha = np.dstack([values, values, values, np.full_like(values, 255)])
        assert np.array_equal(read_mask(self.save(tmp_path / "a.png", with_alpha), 2), values)
        assert np.array_equal(read_mask(self.save(tmp_path / "b.bmp", values), 2), values)
        Image.fromarray(values > 0).save(tmp_path / "bits.png")
        assert np.array_equal(read_mask(tmp_path / "bits.png", 2), values > 0)

    def test_pictures_that_are_no_masks(self, tmp_path):
        colour = np.zeros((4, 5, 3), np.uint8)
        colour[0, 0] = (1, 2, 3)
        with pytest.raises(InputError, match="has one channel, this one has 3 that differ"):
            read_mask(self.save(tmp_path / "c.png", colour), 2)
        with pytest.raises(InputError, match="lossless picture"):
            read_mask(self.save(tmp_path / "c.jpg", colour), 2)
        with pytest.raises(InputError, match="from 0 to 255, found 0 to 300"):
            read_mask(self.save(tmp_path / "d.png", np.array([[0, 300]], np.uint16)), 2)
        with pytest.raises(InputError, match="no such file"):
            read_mask(tmp_path / "none.png", 2)

    def test_volumes(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 3, (3, 4, 5)).astype(np.float32)
        write_nifti(tmp_path / "m.nii.gz", values, (2, 1, 1))
        assert np.array_equal(read_mask(tmp_path / "m.nii.gz", 3), values.astype(np.uint8))
        write_nifti(tmp_path / "h.nii.gz", values + 0.5, (2, 1, 1))
        with pytest.raises(InputError, match=r"whole numbers from 0 to 255, found 0.5 to 2.5 \(float32\)"):
            read_mask(tmp_path / "h.nii.gz", 3)
        (tmp_path / "m.dcm").write_bytes(b"x")
        with pytest.raises(InputError, match="a 3D mask is one of .nii"):
            read_mask(tmp_path / "m.dcm", 3)

    def test_names(self):
        assert names_mask("a/B.PNG", 2) and names_mask("b.nii.gz", 3) and names_mask("b.mha", 3)
        assert not any((names_mask("b.nii.gz", 2), names_mask("covid", 2), names_mask(3, 3), names_mask("b.png", 1)))

    def test_labelled_pair(self, tmp_path):
        image, mask = ramp((3, 4, 5), 0), ramp((3, 4, 5), 2)
        write_nifti(tmp_path / "i.nii.gz", image, (2, 1, 1))
        write_nifti(tmp_path / "m.nii.gz", mask, (2, 1, 1))
        array, spacing, labels = read_labelled(tmp_path / "i.nii.gz", tmp_path / "m.nii.gz", modality=CT)
        assert np.array_equal(array, image) and np.array_equal(labels, mask) and spacing == (2.0, 1.0, 1.0)

    def test_grids_that_differ(self, tmp_path):
        write_nifti(tmp_path / "i.nii.gz", ramp((3, 4, 5), 0), (2, 1, 1))
        write_nifti(tmp_path / "moved.nii.gz", ramp((3, 4, 5), 0), (2, 1, 1), origin=(0, 0, 3))
        write_nifti(tmp_path / "near.nii.gz", ramp((3, 4, 5), 0), (2, 1, 1), origin=(0, 0, 0.4))
        write_nifti(tmp_path / "small.nii.gz", ramp((3, 4, 4), 0), (2, 1, 1))
        with pytest.raises(InputError, match="lies up to 3.0 mm beside its image"):
            read_labelled(tmp_path / "i.nii.gz", tmp_path / "moved.nii.gz", modality=CT)
        read_labelled(tmp_path / "i.nii.gz", tmp_path / "near.nii.gz", modality=CT)
        with pytest.raises(InputError, match=r"mask has the shape \(3, 4, 4\), its image \(3, 4, 5\)"):
            read_labelled(tmp_path / "i.nii.gz", tmp_path / "small.nii.gz", modality=CT)

    def test_another_orientation_of_the_file_does_not_matter(self, tmp_path):
        """A mask whose voxels are stored in another order, with the header that says so."""
        import nibabel

        image, mask = ramp((3, 4, 5), 0), ramp((3, 4, 5), 2)
        write_nifti(tmp_path / "i.nii.gz", image, (2, 1, 1))
        write_nifti(tmp_path / "m.nii.gz", mask, (2, 1, 1))
        flipped = nibabel.as_closest_canonical(nibabel.load(tmp_path / "m.nii.gz"))
        nibabel.save(flipped, tmp_path / "f.nii.gz")
        assert np.array_equal(read_labelled(tmp_path / "i.nii.gz", tmp_path / "f.nii.gz", modality=CT)[2], mask)

    def test_pictures(self, tmp_path):
        write_picture(tmp_path / "i.png", ramp((6, 7), 1, np.uint8))
        write_picture(tmp_path / "m.png", ramp((6, 7), 0, np.uint8))
        write_picture(tmp_path / "s.png", ramp((6, 8), 0, np.uint8))
        _, spacing, labels = read_labelled(tmp_path / "i.png", tmp_path / "m.png", modality=XRAY)
        assert spacing is None and np.array_equal(labels, ramp((6, 7), 0))
        with pytest.raises(InputError, match=r"\(6, 8\), its image \(6, 7\)"):
            read_labelled(tmp_path / "i.png", tmp_path / "s.png", modality=XRAY)
