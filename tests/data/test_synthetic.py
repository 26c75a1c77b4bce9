"""Synthetic items: real files with known geometry, the same for the same arguments, and planted faults."""

import numpy as np
import pytest

from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.modalities import Modality
from medcoss_components.data.readers import read_image, read_volume
from medcoss_components.data.synthetic import ALLOWED_DEFECTS, ellipse_mask, synthetic_manifest
from medcoss_components.data.writers import write_dicom, write_dicom_series, write_nifti
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, sha256_file

NAMES = ("report", "xray", "ct", "mri", "pathology")


@pytest.mark.parametrize("name", NAMES)
def test_manifest_reads_and_passes_its_check(tmp_path, name):
    manifest = read_manifest(synthetic_manifest(tmp_path, name, count=4))
    assert manifest.counts == {"training": 4, "validation": 2, "testing": 0}
    assert [item.label for item in manifest.training] == ["small", "large", "small", "large"]
    assert [p for p in check_manifest(manifest, workers=1) if p.severity == "error"] == []


@pytest.mark.parametrize("name", NAMES)
def test_same_arguments_give_same_content_and_other_seeds_do_not(tmp_path, name):
    paths = [synthetic_manifest(tmp_path / str(k), name, count=2, seed=seed) for k, seed in enumerate((3, 3, 4))]
    hashes = [
        [sha256_file(item.image) if item.image else item.text for item in read_manifest(path).training]
        for path in paths
    ]
    assert hashes[0] == hashes[1]
    assert set(hashes[0]).isdisjoint(hashes[2])


def test_picture_is_bright_inside_its_ellipse(tmp_path):
    manifest = read_manifest(synthetic_manifest(tmp_path, "xray", count=2, shape=(40, 60)))
    geometry = read_json(tmp_path / "geometry.json")
    for item in manifest.training:
        array = read_image(item.image).array
        inside = ellipse_mask((40, 60), geometry[item.id]["centre"], geometry[item.id]["radii"])
        assert array.shape == (40, 60)
        assert array.dtype == np.uint16
        assert array[inside].min() > 0.8 * 65535 > array[~inside].max()


def test_volume_keeps_axes_spacing_and_unit(tmp_path):
    manifest = read_manifest(synthetic_manifest(tmp_path, "ct", count=1, shape=(12, 20, 28)))
    geometry = read_json(tmp_path / "geometry.json")["training-000"]
    volume = read_volume(manifest.training[0].image)
    assert volume.array.shape == (12, 20, 28)
    assert geometry["spacing"] == [2.5, 1.0, 1.0]
    assert volume.spacing == pytest.approx((2.5, 1.0, 1.0))
    inside = ellipse_mask((12, 20, 28), geometry["centre"], geometry["radii"])
    assert volume.array[inside].min() > 500 > volume.array[~inside].max()
    assert manifest.intensity_unit == "HU"


def test_new_modality_is_written_with_its_entry(tmp_path):
    entry = Modality(name="synthetic_oct", dimension=2, input_shape=(1, 32, 48), intensity="unit_range")
    path = synthetic_manifest(tmp_path, entry.to_dict(), count=1, preparation={"fit": "pad"})
    assert read_json(path)["modality"]["input_shape"] == [1, 32, 48]
    assert read_manifest(path).preparation == {"fit": "pad"}


def test_ellipse_mask_equals_loops():
    shape, centre, radii = (4, 6, 8), (1.5, 2.0, 4.0), (1.6, 2.5, 3.0)
    expected = np.zeros(shape, bool)
    for z in range(4):
        for y in range(6):
            for x in range(8):
                offsets = ((z - 1.5) / 1.6, (y - 2) / 2.5, (x - 4) / 3)
                expected[z, y, x] = sum(o * o for o in offsets) <= 1
    np.testing.assert_array_equal(ellipse_mask(shape, centre, radii), expected)


def test_large_is_larger_than_small(tmp_path):
    synthetic_manifest(tmp_path, "mri", count=6)
    geometry = read_json(tmp_path / "geometry.json").values()
    radii = {label: [max(g["radii"]) for g in geometry if g["label"] == label] for label in ("small", "large")}
    assert max(radii["small"]) < min(radii["large"])


@pytest.mark.parametrize("name", ["xray", "ct"])
@pytest.mark.parametrize("defect", ["truncated", "missing_file", "wrong_modality"])
def test_spoilt_file_is_refused_by_the_reader(tmp_path, name, defect):
    manifest = read_manifest(synthetic_manifest(tmp_path, name, count=2, defects=[defect]))
    read = read_image if name == "xray" else read_volume
    with pytest.raises(InputError, match="training-000"):
        read(manifest.training[0].image, expected_modality=manifest.modality.dicom_modalities)
    read(manifest.training[1].image, expected_modality=manifest.modality.dicom_modalities)


def test_nan_voxels(tmp_path):
    manifest = read_manifest(synthetic_manifest(tmp_path, "mri", count=2, defects=["nan"]))
    with pytest.raises(InputError, match=r"training-000.*NaN"):
        read_volume(manifest.training[0].image)


def test_defects_of_the_list_itself(tmp_path):
    defects = ("empty_text", "duplicate_content", "duplicate_id", "group_across_splits")
    document = read_json(synthetic_manifest(tmp_path, "report", count=6, defects=defects))
    training = document["training"]
    assert training[0]["text"].strip() == ""
    assert training[1]["text"] == training[5]["text"]
    assert training[2]["id"] == training[5]["id"]
    assert training[3]["group"] == document["validation"][0]["group"]


def test_duplicate_content_of_files(tmp_path):
    manifest = read_manifest(synthetic_manifest(tmp_path, "xray", count=3, defects=["duplicate_content"]))
    first, _, last = (sha256_file(item.image) for item in manifest.training)
    assert first == last


@pytest.mark.parametrize(("name", "defect"), [("report", "nan"), ("xray", "nan"), ("ct", "empty_text"), ("ct", "rust")])
def test_unknown_defect_is_an_error(tmp_path, name, defect):
    with pytest.raises(InputError, match=defect):
        synthetic_manifest(tmp_path, name, defects=[defect])


def test_more_defects_than_items_is_an_error(tmp_path):
    with pytest.raises(InputError, match="count=1"):
        synthetic_manifest(tmp_path, "xray", count=1, defects=ALLOWED_DEFECTS[2][:2])


def test_written_dicom_series_and_nifti_read_back_alike(tmp_path):
    volume = np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8)
    write_dicom_series(tmp_path / "series", volume, modality="MR", thickness=2.5)
    write_nifti(tmp_path / "volume.nii.gz", volume, (2.5, 1.0, 1.0))
    for path in (tmp_path / "series", tmp_path / "volume.nii.gz"):
        read = read_volume(path)
        np.testing.assert_array_equal(read.array, volume)
        assert read.spacing == pytest.approx((2.5, 1.0, 1.0))


def test_monochrome1_dicom_is_inverted_on_reading(tmp_path):
    picture = np.array([[0, 10], [20, 65535]], dtype=np.uint16)
    write_dicom(tmp_path / "film.dcm", picture, modality="CR", PhotometricInterpretation="MONOCHROME1")
    array = np.asarray(read_image(tmp_path / "film.dcm").array, dtype=np.int64)
    np.testing.assert_array_equal(array - array.min(), 65535 - picture.astype(np.int64))


class TestTasks:
    @pytest.mark.parametrize("name", NAMES)
    def test_classes_are_the_labels_in_turn(self, tmp_path, name):
        path = synthetic_manifest(tmp_path, name, count=4, validation=1, testing=2, classes=("a", "b", "c"))
        manifest = read_manifest(path)
        assert [item.label for item in manifest.training] == ["a", "b", "c", "a"]
        assert manifest.counts == {"training": 4, "validation": 1, "testing": 2}
        assert (
            len({item.group for split in ("training", "validation", "testing") for item in manifest.items(split)}) == 7
        )

    def test_validation_has_every_class(self, tmp_path):
        manifest = read_manifest(synthetic_manifest(tmp_path, "report", count=4, classes=("a", "b", "c")))
        assert [item.label for item in manifest.validation] == ["a", "b", "c"]

    def test_later_classes_are_larger_and_brighter(self, tmp_path):
        """16 bit, body 0.4, ellipse 0.4 + 0.55 * (0.4, 1) for two classes, noise of 2 %; radii 0.1 and 0.18 of 50."""
        manifest = read_manifest(synthetic_manifest(tmp_path, "xray", count=2, shape=(50, 50), classes=("a", "b")))
        geometry = read_json(tmp_path / "geometry.json")
        for item, level, radius in zip(manifest.training, (0.62, 0.95), (5, 9), strict=True):
            known = geometry[item.id]
            inside = ellipse_mask((50, 50), known["centre"], known["radii"])
            assert read_image(item.image).array[inside].mean() / 65535 == pytest.approx(level, abs=0.02)
            assert known["radii"] == pytest.approx([radius, radius], rel=0.1)

    def test_sentences_name_their_class_and_are_different(self, tmp_path):
        manifest = read_manifest(synthetic_manifest(tmp_path, "report", count=8, testing=8, classes=("METHODS", "AIM")))
        items = [item for split in ("training", "validation", "testing") for item in manifest.items(split)]
        assert all(item.label in item.text for item in items)
        assert len({item.text for item in items}) == len(items)

    @pytest.mark.parametrize(("name", "shape"), [("xray", (30, 42)), ("pathology", (30, 42)), ("ct", (10, 20, 28))])
    def test_masks_hold_the_ellipse_and_its_core(self, tmp_path, name, shape):
        regions = {"organ": [3, 7], "core": [7]}
        manifest = read_manifest(synthetic_manifest(tmp_path, name, count=1, shape=shape, regions=regions))
        assert [p for p in check_manifest(manifest, workers=1) if p.severity == "error"] == []
        geometry = read_json(tmp_path / "geometry.json")["training-000"]
        label = manifest.training[0].label
        mask = read_image(tmp_path / label).array if len(shape) == 2 else read_volume(tmp_path / label).array
        outer = ellipse_mask(shape, geometry["centre"], geometry["radii"])
        core = ellipse_mask(shape, geometry["centre"], [radius / 2 for radius in geometry["radii"]])
        np.testing.assert_array_equal(mask, 3 * outer + 4 * core)

    def test_core_is_brighter_than_its_shell(self, tmp_path):
        """CT levels: body 40, ellipse 700; of two shells the outer one lies half way at 370."""
        synthetic_manifest(tmp_path, "ct", count=1, shape=(16, 40, 40), regions={"organ": [1, 2], "core": [2]})
        volume = read_volume(tmp_path / "files" / "training-000.nii.gz").array
        mask = read_volume(tmp_path / "masks" / "training-000.nii.gz").array
        assert volume[mask == 1].mean() == pytest.approx(370, abs=15)
        assert volume[mask == 2].mean() == pytest.approx(680, abs=20)  # noise above 700 is cut off

    def test_any_is_one_value(self, tmp_path):
        synthetic_manifest(tmp_path, "xray", count=1, regions={"infection": "any"})
        assert set(np.unique(read_image(tmp_path / "masks" / "training-000.png").array)) == {0, 1}

    @pytest.mark.parametrize(
        ("name", "given", "shown"),
        [
            ("xray", {"classes": ("a", "a")}, r"\['a', 'a'\]"),
            ("xray", {"classes": ()}, r"received \[\]"),
            ("report", {"regions": {"a": "any"}}, "'report'"),
            ("xray", {"regions": {"a": "any"}, "classes": ("a",)}, r"classes=\('a',\)"),
            ("xray", {"regions": {"a": "all"}}, "'all'"),
            ("xray", {"regions": {}}, "got {}"),
            ("ct", {"regions": {"a": [0, 1]}}, r"got \[0, 1\]"),
        ],
    )
    def test_refusals(self, tmp_path, name, given, shown):
        with pytest.raises(InputError, match=shown):
            synthetic_manifest(tmp_path, name, **given)
        assert list(tmp_path.iterdir()) == []
