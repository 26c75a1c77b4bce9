import numpy as np
import pytest

from medcoss_components.data.cases import default_case_preparation
from medcoss_components.data.manifest import Item
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.preparation import (
    CASE_ONLY,
    default_preparation,
    encode_texts,
    gives_several,
    image_samples,
    orient,
    prepare_item,
    resolve_preparation,
    slab_starts,
    volume_samples,
)
from medcoss_components.data.resampling import fit_plane, fitted_size, tile_starts
from medcoss_components.data.synthetic import synthetic_manifest, write_dicom, write_nifti, write_picture
from medcoss_components.errors import InputError
from medcoss_components.text.vocabulary import train_vocabulary

XRAY = get_modality("xray", input_shape=(3, 20, 30))
PATHOLOGY = get_modality("pathology", input_shape=(3, 20, 30))
CT = get_modality("ct", input_shape=(1, 4, 6, 8))
MRI = get_modality("mri", input_shape=(1, 4, 6, 8))
OCT_ENTRY = {"name": "oct_test", "dimension": 3, "input_shape": [1, 4, 6, 8], "intensity": "unit_range"}


def images(array, modality=XRAY, spacing=None, **settings):
    return list(image_samples(array, spacing, modality=modality, settings=resolve_preparation(modality, settings)))


def volumes(array, modality=CT, spacing=(1.0, 1.0, 1.0), **settings):
    return list(volume_samples(array, spacing, modality=modality, settings=resolve_preparation(modality, settings)))


def position_volume(shape, axis):
    """Each voxel holds its index along ``axis``."""
    return np.broadcast_to(np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)]), shape).astype(
        np.int16
    )


class TestSettings:
    def test_defaults_follow_the_rules(self):
        assert default_preparation(get_modality("report")) == {"max_length": 112}
        assert default_preparation(get_modality("xray"))["percentiles"] == [0.5, 99.5]
        assert default_preparation(get_modality("pathology"))["percentiles"] is None
        ct, mri = default_preparation(get_modality("ct")), default_preparation(get_modality("mri"))
        assert (ct["slices_stride"], ct["middle"]) == (16, 1.0)
        assert (mri["slices_stride"], mri["middle"], mri["percentiles"]) == (8, 0.8, [0.2, 99.8])

    def test_later_layers_win(self):
        settings = resolve_preparation(
            CT, {"middle": 0.5, "fit": "crop"}, None, {"middle": 0.7, "orientations": ("axial",)}
        )
        assert (settings["middle"], settings["fit"], settings["orientations"]) == (0.7, "crop", ["axial"])

    @pytest.mark.parametrize("modality", [XRAY, CT])
    def test_settings_of_cases_in_a_manifest_are_passed_over(self, modality):
        stored = dict.fromkeys(set(default_case_preparation(modality)) - set(default_preparation(modality)), [2, 2, 2])
        assert tuple(sorted(stored)) == tuple(sorted(CASE_ONLY[modality.dimension]))
        assert resolve_preparation(modality, stored, {"fit": "pad"}) == resolve_preparation(modality, {"fit": "pad"})
        with pytest.raises(InputError, match="'spacing' is no setting"):
            resolve_preparation(modality, None, {"spacing": [2, 2, 2]})
        with pytest.raises(InputError, match="'spacings' is no setting"):
            resolve_preparation(modality, {"spacings": [2, 2, 2]})

    def test_text_has_no_cases(self):
        with pytest.raises(InputError, match="'spacing' is no setting"):
            resolve_preparation(get_modality("report"), {"spacing": [2, 2, 2]})

    def test_unknown_name(self):
        with pytest.raises(InputError, match="'slices_stride' is no setting of modality xray; known: fit, tile"):
            resolve_preparation(XRAY, {"slices_stride": 3})

    @pytest.mark.parametrize(
        ("modality", "name", "value"),
        [
            (get_modality("report"), "max_length", 113),
            (get_modality("report"), "max_length", 2),
            (XRAY, "fit", "squeeze"),
            (XRAY, "tile", [224]),
            (XRAY, "stride", [0, 8]),
            (XRAY, "percentiles", [99, 1]),
            (XRAY, "percentiles", ["a", "b"]),
            (XRAY, "percentiles", 99),
            (CT, "slices_stride", 0),
            (CT, "middle", 1.5),
            (CT, "orientations", ["oblique"]),
            (CT, "orientations", []),
            (CT, "orientations", ["axial", "axial"]),
        ],
    )
    def test_value_out_of_range_is_shown(self, modality, name, value):
        with pytest.raises(InputError, match=f"{name}=.*{modality.name}") as caught:
            resolve_preparation(modality, {name: value})
        assert repr(value) in str(caught.value)

    def test_which_items_give_several_samples(self):
        assert not gives_several(XRAY, resolve_preparation(XRAY))
        assert gives_several(XRAY, resolve_preparation(XRAY, {"tile": [8, 8]}))
        assert gives_several(CT, resolve_preparation(CT))


class TestGeometry:
    @pytest.mark.parametrize(
        ("shape", "spacing", "fit", "expected"),
        [
            ((40, 40), None, "crop", (30, 30)),
            ((40, 40), None, "pad", (20, 20)),
            ((40, 40), None, "stretch", (20, 30)),
            ((40, 40), (1.0, 3.0), "crop", (20, 60)),
            ((40, 40), (1.0, 3.0), "pad", (10, 30)),
            ((5, 1000), None, "pad", (1, 30)),
        ],
    )
    def test_fitted_size(self, shape, spacing, fit, expected):
        assert fitted_size(shape, size=(20, 30), spacing=spacing, fit=fit) == expected

    def test_crop_takes_the_centre(self):
        stack = np.arange(30 * 30, dtype=np.float32).reshape(1, 30, 30)
        assert np.array_equal(fit_plane(stack, size=(20, 30), spacing=None, fit="crop"), stack[:, 5:25])

    def test_shrinking_averages(self):
        """Every 2 x 2 block of a checkerboard has the mean 0.5."""
        board = (np.indices((8, 8)).sum(0) % 2).astype(np.float32)[None]
        small = fit_plane(board, size=(4, 4), spacing=None, fit="crop")
        assert np.allclose(small[0, 1:-1, 1:-1], 0.5)

    def test_same_size_is_exact(self):
        stack = np.random.default_rng(0).random((2, 20, 30), dtype=np.float32)
        assert np.array_equal(fit_plane(stack, size=(20, 30), spacing=None, fit="pad"), stack)

    @pytest.mark.parametrize(
        ("slices", "stride", "middle", "expected"),
        [
            (133, 16, 1.0, [2, 18, 34, 50, 66, 82, 98, 114]),
            (100, 8, 0.8, [10, 18, 26, 34, 42, 50, 58, 66, 74]),
            (16, 16, 1.0, [0]),
            (20, 8, 0.5, [2]),
            (10, 8, 0.8, [0]),
        ],
    )
    def test_slab_starts(self, slices, stride, middle, expected):
        starts = slab_starts(slices, depth=16, stride=stride, middle=middle)
        assert starts == expected

    def test_too_few_slices(self):
        with pytest.raises(InputError, match="has 7 slices in this direction, at least 8"):
            slab_starts(7, depth=16, stride=8, middle=1.0)

    @pytest.mark.parametrize("length", [30, 31, 100])
    def test_tiles_stay_inside_and_in_the_middle(self, length):
        starts = tile_starts(length, 30, 20)
        rest = length - (starts[-1] + 30)
        assert starts[0] >= 0 and abs(rest - starts[0]) <= 1

    def test_orientations_show_the_head_on_top(self):
        array = position_volume((5, 6, 7), axis=0)
        assert orient(array, (1.0, 2.0, 3.0), "axial")[1] == (2.0, 3.0)
        coronal, spacing = orient(array, (1.0, 2.0, 3.0), "coronal")
        assert coronal.shape == (6, 5, 7) and spacing == (1.0, 3.0)
        assert coronal[0, :, 0].tolist() == [4, 3, 2, 1, 0]
        sagittal, spacing = orient(array, (1.0, 2.0, 3.0), "sagittal")
        assert sagittal.shape == (7, 5, 6) and spacing == (1.0, 2.0)
        assert sagittal[0, :, 0].tolist() == [4, 3, 2, 1, 0]


class TestImages:
    def test_robust_window(self):
        """0..600 evenly: 0.5 % and 99.5 % are 3 and 597; what is beyond is clipped."""
        array = np.arange(601, dtype=np.uint16)[None].repeat(20, 0)[:, :600]
        array[:, -1] = 60000  # a dead detector column inside the upper half percent
        sample = images(array, get_modality("xray", input_shape=(3, 20, 600)))[0]
        assert sample.shape == (1, 20, 600) and sample.dtype == np.uint8
        assert sample[0, 0, 0] == 0 and sample[0, 0, -1] == 255
        assert abs(int(sample[0, 0, 300]) - 128) <= 1

    def test_colours_are_kept(self):
        array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        assert np.array_equal(images(array, PATHOLOGY)[0], array.transpose(2, 0, 1))

    @pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 65535), (np.bool_, 1)])
    def test_range_of_the_type_without_percentiles(self, dtype, top):
        array = np.zeros((20, 30), dtype)
        array[:10] = top
        sample = images(array, PATHOLOGY)[0]
        assert sample.shape == (3, 20, 30) and set(np.unique(sample)) == {0, 255}

    def test_colour_to_grey_by_luminance(self):
        array = np.zeros((20, 30, 3), np.uint8)
        array[..., 1] = 100
        array[0, 0], array[-1, -1] = 0, 255
        sample = images(array, XRAY, percentiles=[0, 100])[0]
        assert sample[0, 10, 10] == round(100 * 0.587)

    def test_sparse_image_falls_back_to_its_range(self):
        array = np.zeros((200, 300), np.uint8)
        array[100, 150] = 9
        assert images(array, get_modality("xray", input_shape=(3, 200, 300)))[0].max() == 255

    def test_aspect_ratio_is_kept(self):
        """A disc stays a disc: its box is as high as wide after fitting 80 x 60 pixels of 1 x 2 mm."""
        rows, columns = np.ogrid[:80, :60]
        disc = ((rows - 40) ** 2 + (2 * (columns - 30)) ** 2 < 30**2).astype(np.uint8) * 200
        sample = images(disc, XRAY, spacing=(1.0, 2.0), fit="pad", percentiles=[0, 100])[0][0]
        bright = np.argwhere(sample > 100)
        height, width = np.ptp(bright, axis=0) + 1
        assert abs(int(height) - int(width)) <= 1
        assert sample[:, :1].max() == 0 and sample[:, -1:].max() == 0

    def test_tiles_in_raster_order(self):
        array = np.zeros((41, 60), np.uint8)
        for number in range(4):
            array[20 * (number // 2) : 20 * (number // 2) + 20, 30 * (number % 2) : 30 * (number % 2) + 30] = (
                10 * number
            )
        tiles = images(array, PATHOLOGY, tile=[20, 30])
        assert [int(tile[0, 5, 5]) for tile in tiles] == [0, 10, 20, 30]
        assert len(images(array, PATHOLOGY, tile=[20, 30], stride=[7, 30])) == 8

    def test_tiles_share_the_window_of_the_image(self):
        array = np.zeros((20, 60), np.uint8)
        array[:, 30:] = 200
        array[:, 10:20] = 100
        first, _ = images(array, XRAY, tile=[20, 30], percentiles=[0, 100])
        assert first.max() == 128  # not stretched to its own maximum

    @pytest.mark.parametrize(
        ("array", "settings", "message"),
        [
            (np.full((20, 30), 7, np.uint8), {}, "constant, every value is 7"),
            (np.zeros((20, 30, 4), np.uint8), {}, r"shape \(20, 30, 4\)"),
            (np.zeros((0, 30), np.uint8), {}, r"empty, shape \(0, 30\)"),
            (np.array([[np.nan, 1.0], [np.inf, 2.0]], np.float32), {}, "2 of 4 values are NaN"),
            (np.eye(20, dtype=np.uint8), {"tile": [20, 30]}, r"\(20, 20\) pixels is smaller than the tile \(20, 30\)"),
        ],
    )
    def test_bad_images(self, array, settings, message):
        with pytest.raises(InputError, match=message):
            images(array, XRAY, **settings)


class TestVolumes:
    def test_hounsfield_is_clipped_and_exact_at_model_size(self):
        array = np.random.default_rng(0).integers(-2000, 3000, (9, 6, 8)).astype(np.int16)
        samples = volumes(array)
        assert len(samples) == 2 and samples[0].shape == (1, 4, 6, 8) and samples[0].dtype == np.int16
        for number, sample in enumerate(samples):  # one slice is over: two blocks from slice 0
            assert np.array_equal(sample[0], np.clip(array[4 * number : 4 * number + 4], -1024, 1024))

    def test_padding_is_air(self):
        sample = volumes(np.full((4, 6, 6), 50, np.int16))[0][0]
        assert sample[:, :, 0].tolist() == [[-1024] * 6] * 4 and sample[:, :, -1].min() == -1024
        assert (sample[:, :, 1:-1] == 50).all()

    def test_zscore_per_sub_volume(self):
        array = np.random.default_rng(0).normal(300, 40, (20, 6, 8)).astype(np.float32)
        samples = volumes(array, MRI, percentiles=None)
        assert len(samples) == len(slab_starts(20, depth=4, stride=2, middle=0.8)) == 7
        for start, sample in zip(range(2, 16, 2), samples, strict=True):
            part = array[start : start + 4].astype(np.float64)
            assert sample.dtype == np.float16
            assert np.allclose(sample[0], (part - part.mean()) / part.std(), atol=2e-3)

    def test_zscore_clips_outliers_first(self):
        array = np.random.default_rng(0).normal(300, 40, (4, 6, 8)).astype(np.float32)
        array[2, 3, 4] = 1e6
        sample = volumes(array, MRI)[0]
        assert sample.max() < 5 or np.sort(sample.ravel())[-2] > -1
        part = np.clip(array, *np.percentile(array, [0.2, 99.8]))
        assert np.allclose(sample[0], (part - part.mean()) / part.std(), atol=2e-2)

    def test_zscore_padding_is_the_lowest_value(self):
        array = np.random.default_rng(0).normal(300, 40, (4, 6, 6)).astype(np.float32)
        sample = volumes(array, MRI)[0][0]
        assert (sample[..., 0] == sample.min()).all() and (sample[..., -1] == sample.min()).all()

    def test_constant_sub_volume_is_zero(self):
        assert not volumes(np.full((4, 6, 8), 5, np.float32), MRI)[0].any()

    def test_few_slices_repeat_the_edges(self):
        array = position_volume((2, 6, 8), axis=0)
        assert volumes(array)[0][0, :, 0, 0].tolist() == [0, 0, 1, 1]

    def test_orientations_follow_each_other(self):
        array = position_volume((8, 8, 8), axis=0)
        samples = volumes(array, get_modality("ct", input_shape=(1, 4, 8, 8)), orientations=["axial", "sagittal"])
        assert len(samples) == 4
        assert samples[0][0, :, 0, 0].tolist() == [0, 1, 2, 3] and samples[1][0, 0, 0, 0] == 4
        assert samples[2][0, 0, :, 0].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]

    def test_thick_slices_keep_their_height(self):
        """5 slices of 6 mm are as high as 30 columns of 1 mm: the coronal plane fills 8 x 8 without padding."""
        array = np.random.default_rng(0).integers(0, 100, (5, 8, 30)).astype(np.int16)
        modality = get_modality("ct", input_shape=(1, 4, 8, 8))
        sample = volumes(array, modality, spacing=(6.0, 1.0, 1.0), orientations=["coronal"])[0]
        assert sample.min() >= 0

    def test_a_new_modality_needs_no_code(self):
        array = np.random.default_rng(0).integers(0, 4000, (8, 6, 8)).astype(np.uint16)
        samples = volumes(array, get_modality(OCT_ENTRY))
        assert len(samples) == 2 and samples[0].dtype == np.uint8 and samples[0].max() > 200

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((4, 6), np.int16), r"3 axes, this one has the shape \(4, 6\)"),
            (np.full((4, 6, 8), np.nan, np.float32), "192 of 192 values are NaN"),
            (np.zeros((1, 6, 8), np.int16), "has 1 slices in this direction, at least 2"),
        ],
    )
    def test_bad_volumes(self, array, message):
        with pytest.raises(InputError, match=message):
            volumes(array)


class TestTexts:
    def test_padded_to_the_model_and_bad_ones_by_position(self):
        vocabulary = train_vocabulary(["heart normal"] * 3, size=40)
        items = [
            Item("a", text="heart"),
            Item("b", text="  "),
            Item("c", text="\u200b\x00"),
            Item("d"),
            Item("e", text="normal"),
        ]
        modality = get_modality("report", input_shape=(8,))
        ids, bad = encode_texts(items, modality=modality, settings={"max_length": 6}, vocabulary=vocabulary)
        heart, normal = (vocabulary.tokens.index(word) for word in ("heart", "normal"))
        assert ids.tolist() == [[2, heart, 3, 0, 0, 0, 0, 0], [2, normal, 3, 0, 0, 0, 0, 0]]
        assert bad[1] == bad[3] == "the text is empty" and "no character" in bad[2]


class TestFiles:
    def prepare(self, path, modality):
        return list(prepare_item(Item("i", image=path), modality=modality, settings=resolve_preparation(modality)))

    def test_picture(self, tmp_path):
        array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        write_picture(tmp_path / "a.png", array)
        assert np.array_equal(self.prepare(tmp_path / "a.png", PATHOLOGY)[0], array.transpose(2, 0, 1))

    def test_volume(self, tmp_path):
        array = np.random.default_rng(0).integers(-500, 500, (4, 6, 8)).astype(np.int16)
        write_nifti(tmp_path / "a.nii.gz", array, (1.0, 1.0, 1.0))
        assert np.array_equal(self.prepare(tmp_path / "a.nii.gz", CT)[0][0], array)

    def test_other_dicom_modality(self, tmp_path):
        write_dicom(tmp_path / "a.dcm", np.arange(600, dtype=np.uint16).reshape(20, 30), modality="US")
        with pytest.raises(InputError, match="US"):
            self.prepare(tmp_path / "a.dcm", XRAY)

    def test_missing_and_nameless(self, tmp_path):
        with pytest.raises(InputError, match=r"a\.png: no such file"):
            self.prepare(tmp_path / "a.png", XRAY)
        with pytest.raises(InputError, match="names no image"):
            self.prepare(None, XRAY)

    def test_synthetic_geometry_survives(self, tmp_path):
        """The bright ellipse of a phantom is found where the manifest's geometry says, after shrinking to half."""
        import json

        path = synthetic_manifest(tmp_path, "xray", count=1, shape=(96, 80))
        geometry = json.loads((tmp_path / "geometry.json").read_text())["training-000"]
        modality = get_modality("xray", input_shape=(3, 48, 40))
        sample = self.prepare(path.parent / "files" / "training-000.png", modality)[0][0]
        found = np.argwhere(sample > 200).mean(0)
        assert np.allclose(found, [(centre + 0.5) / 2 - 0.5 for centre in geometry["centre"]], atol=0.7)


class TestWholeVolumes:
    def test_settings(self):
        assert "depth" not in resolve_preparation(CT)
        assert resolve_preparation(CT, {"depth": "slabs"}) == resolve_preparation(CT)
        assert resolve_preparation(MRI, {"depth": "whole"})["middle"] == 1.0
        assert resolve_preparation(MRI, {"depth": "whole", "middle": 0.5})["middle"] == 0.5
        with pytest.raises(InputError, match="depth='half' of modality ct: must be one of slabs, whole"):
            resolve_preparation(CT, {"depth": "half"})

    def test_one_sample_of_all_slices(self):
        (sample,) = volumes(position_volume((8, 6, 8), 0) * 10, depth="whole")
        assert sample.shape == (1, 4, 6, 8) and sample.dtype == np.int16
        assert sample[0, :, 0, 0].tolist() == pytest.approx([7, 25, 45, 63], abs=2)  # means of pairs, smoothed

    def test_few_slices_grow(self):
        (sample,) = volumes(position_volume((2, 6, 8), 0) * 100, depth="whole")
        assert sample[0, :, 0, 0].tolist() == [0, 25, 75, 100]
        with pytest.raises(InputError, match="has 1 slices in this direction, at least 2"):
            volumes(np.zeros((1, 6, 8), np.int16), depth="whole")

    def test_middle_and_orientations(self):
        (sample,) = volumes(position_volume((8, 6, 8), 0) * 10, depth="whole", middle=0.5)
        assert sample[0, :, 0, 0].tolist() == [20, 30, 40, 50]
        both = volumes(position_volume((8, 6, 8), 0), depth="whole", orientations=["axial", "coronal"])
        assert [sample.shape for sample in both] == [(1, 4, 6, 8)] * 2

    def test_chunks_change_nothing(self, monkeypatch):
        array = np.random.default_rng(0).normal(0, 300, (40, 6, 8)).astype(np.float32)
        (whole,) = volumes(array, modality=MRI, depth="whole")
        monkeypatch.setattr("medcoss_components.data.preparation.CHUNK", 7)
        assert np.array_equal(volumes(array, modality=MRI, depth="whole")[0], whole)
        assert abs(float(whole.astype(np.float32).mean())) < 0.01

    def test_ids(self):
        assert not gives_several(CT, resolve_preparation(CT, {"depth": "whole"}))
        assert gives_several(CT, resolve_preparation(CT, {"depth": "whole", "orientations": ["axial", "coronal"]}))
        assert gives_several(CT, resolve_preparation(CT))
