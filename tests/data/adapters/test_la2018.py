"""Left atrium 2018: miniatures of the organisers' NRRD folders and of the UA-MT crops."""

from __future__ import annotations

import builtins

import h5py
import numpy as np
import pytest
import SimpleITK

from medcoss_components.data.adapters.la2018 import find
from medcoss_components.data.adapters.made_volumes import make_series_folder, smallest_type
from medcoss_components.data.case_store import prepare_cases
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.readers import read_volume
from medcoss_components.errors import InputError

from .miniatures import recipe_source

SHAPE = (8, 20, 24)
"""(Z, Y, X)"""
NAMES = [f"CASE{number:016d}" for number in range(9)]


def volume(number, value=255):
    """Grey image and mask: a box at a place of its own."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 3 + number : 9 + number, 4:10] = value
    image = np.random.default_rng(number).integers(0, 90, SHAPE).astype(np.uint8)
    image[mask > 0] += 100
    return image, mask


def write_nrrd(path, array, spacing=(1.0, 1.0, 1.0)):
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def write_case(folder, number, **header):
    image, mask = volume(number)
    write_nrrd(folder / "lgemri.nrrd", image, **header)
    write_nrrd(folder / "laendo.nrrd", mask, **header)
    write_nrrd(folder / "lawall.nrrd", mask, **header)
    return folder


def write_crop(folder, number, label_shape=None):
    image, mask = volume(number, 1)
    folder.mkdir(parents=True)
    with h5py.File(folder / "mri_norm2.h5", "w") as content:
        content["image"] = ((image - image.mean()) / image.std()).astype(np.float32).transpose(2, 1, 0)
        content["label"] = np.zeros(label_shape, np.uint8) if label_shape else mask.transpose(2, 1, 0)


@pytest.fixture
def challenge(tmp_path):
    """Three training and two testing cases in whole."""
    root = tmp_path / "2018_UTAH_MICCAI"
    for number in range(5):
        write_case(root / ("Training Set" if number < 3 else "Testing Set") / NAMES[number], number)
    return root


@pytest.fixture
def crops(tmp_path):
    """Three crops and the lists beside their folder: two for training, one for testing."""
    root = tmp_path / "data"
    for number in range(3):
        write_crop(root / "2018LA_Seg_Training Set" / NAMES[number], number)
    (root / "train.list").write_text("\n".join(NAMES[:2]) + "\n")
    (root / "test.list").write_text(NAMES[2] + "\n")
    return root


def run(root, tmp_path, **settings):
    source = recipe_source("la2018", root, files_dir=tmp_path / "made.files", **settings)
    found, left = find(source)
    return found, {entry.where: entry.reason for entry in left}, source.notes


def test_headers_without_geometry_get_their_spacing(challenge, tmp_path):
    found, left, notes = run(challenge, tmp_path)
    assert [item.split for item in found] == ["testing"] * 2 + ["training"] * 3
    image, mask = read_volume(found[2].path), read_volume(found[2].label)
    assert found[2].name == f"Training Set/{NAMES[0]}" and found[2].size == SHAPE[::-1]
    assert image.spacing == mask.spacing == (0.625, 0.625, 0.625)
    np.testing.assert_array_equal(image.array, volume(0)[0])
    np.testing.assert_array_equal(mask.array, volume(0)[1])
    assert left[f"Testing Set/{NAMES[3]}/lawall.nrrd"] == "neither volume nor mask of the cavity"
    assert any("5 volumes" in note and "0.625 mm" in note for note in notes)
    assert not any("CASE" in path.name for path in (tmp_path / "made.files").rglob("*"))


def test_other_headers_are_kept(challenge, tmp_path):
    write_case(challenge / "Training Set" / NAMES[7], 7, spacing=(0.5, 0.5, 1.25))
    found, _, notes = run(challenge, tmp_path)
    item = next(item for item in found if NAMES[7] in item.name)
    assert item.path == challenge / "Training Set" / NAMES[7] / "lgemri.nrrd"
    assert read_volume(item.path).spacing == (1.25, 0.5, 0.5)
    found, _, notes = run(challenge, tmp_path, spacing=None)
    assert all(item.path.name == "lgemri.nrrd" for item in found) and not notes


def test_equal_masks_are_of_one_patient(challenge, tmp_path):
    first, second = (challenge / "Training Set" / NAMES[number] for number in (1, 2))
    (second / "laendo.nrrd").write_bytes((first / "laendo.nrrd").read_bytes())
    found, _, notes = run(challenge, tmp_path)
    patients = {item.name.rpartition("/")[2]: item.patient for item in found}
    assert patients[NAMES[1]] == patients[NAMES[2]] != "" and patients[NAMES[0]] == patients[NAMES[3]] == ""
    assert any("2 volumes have a mask that another one has too" in note for note in notes)


def test_defects_are_listed(challenge, tmp_path):
    training, testing = challenge / "Training Set", challenge / "Testing Set"
    (testing / NAMES[3] / "laendo.nrrd").unlink()
    write_nrrd(training / NAMES[0] / "laendo.nrrd", volume(0)[1][:7])
    cut = training / NAMES[1] / "lgemri.nrrd"
    cut.write_bytes(cut.read_bytes()[:-200])
    (training / NAMES[2] / "lgemri.nrrd").write_bytes(b"NRRD0004\n")
    (training / NAMES[2] / "desktop.ini").write_text("")
    (challenge / "Unet.py").write_text("")
    found, left, _ = run(challenge, tmp_path)
    assert [item.name for item in found] == [f"Testing Set/{NAMES[4]}"]
    short = {where: why for where, why in left.items() if "lawall" not in where}
    assert short.pop(f"Training Set/{NAMES[1]}/lgemri.nrrd").startswith("cannot be read, it is truncated")
    assert short.pop(f"Training Set/{NAMES[2]}/lgemri.nrrd").startswith("cannot be read, it is truncated")
    assert short == {
        f"Training Set/{NAMES[0]}/lgemri.nrrd": "its mask has (24, 20, 7) voxels, the image (24, 20, 8)",
        f"Testing Set/{NAMES[3]}/lgemri.nrrd": "no laendo.nrrd beside it, it has no label",
        "Unet.py": "neither volume nor mask of the cavity",
    }


def test_crops_follow_their_lists(crops, tmp_path):
    found, left, notes = run(crops, tmp_path)
    assert not left and [item.split for item in found] == ["training", "training", "testing"]
    image, mask = read_volume(found[0].path), read_volume(found[0].label)
    expected, box = volume(0, 1)
    np.testing.assert_array_equal(mask.array, box)
    np.testing.assert_allclose(image.array, (expected - expected.mean()) / expected.std(), rtol=1e-5, atol=1e-6)
    assert image.spacing == mask.spacing == (0.625, 0.625, 0.625) and found[0].size == SHAPE[::-1]
    assert any("3 crops" in note for note in notes)


def test_crops_beside_their_volumes_are_passed_over(challenge, tmp_path):
    write_crop(challenge / "Training Set" / "new", 6)
    (challenge / "Training Set" / "new" / "mri_norm2.h5").rename(challenge / "Training Set" / NAMES[0] / "mri_norm2.h5")
    (challenge / "train.list").write_text("\n".join(NAMES[:2]))
    (challenge / "test.list").write_text(NAMES[2])
    found, left, _ = run(challenge, tmp_path)
    assert [item.split for item in found] == ["testing", "testing", "training", "training", "testing"]
    assert left[f"Training Set/{NAMES[0]}/mri_norm2.h5"] == "neither volume nor mask of the cavity"
    found, _, _ = run(challenge, tmp_path, lists=False)
    assert [item.split for item in found] == ["testing", "testing", "training", "training", "training"]


def test_damaged_crops_are_listed(crops, tmp_path):
    base = crops / "2018LA_Seg_Training Set"
    write_crop(base / NAMES[3], 3, label_shape=(24, 20, 7))
    with h5py.File(base / NAMES[1] / "mri_norm2.h5", "w") as content:
        content["image"] = np.zeros((4, 4, 4))
    (base / NAMES[2] / "mri_norm2.h5").write_bytes(b"no h5 file")
    found, left, _ = run(crops, tmp_path)
    assert [item.name.rpartition("/")[2] for item in found] == [NAMES[0]]
    prefix = "2018LA_Seg_Training Set"
    assert left.pop(f"{prefix}/{NAMES[2]}/mri_norm2.h5").startswith("cannot be read")
    assert left == {
        f"{prefix}/{NAMES[1]}/mri_norm2.h5": "holds no array label",
        f"{prefix}/{NAMES[3]}/mri_norm2.h5": "its label has (24, 20, 7) voxels, the image (24, 20, 8)",
    }


def test_a_case_in_both_lists_is_refused(crops, tmp_path):
    (crops / "test.list").write_text("\n".join(NAMES[1:3]))
    with pytest.raises(InputError, match=r"list: a case stands in several lists"):
        run(crops, tmp_path)


def test_without_h5py_the_extra_is_named(crops, challenge, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"h5py is missing.*pip install 'medcoss-components\[datasets\]'"):
        run(crops, tmp_path)
    assert len(run(challenge, tmp_path)[0]) == 5


def test_another_layout_is_refused(tmp_path):
    (tmp_path / "Training Set").mkdir()
    with pytest.raises(InputError, match=r"holds no lgemri\.nrrd and no mri_norm2\.h5"):
        run(tmp_path / "Training Set", tmp_path)


@pytest.mark.parametrize(("layout", "counts"), [("challenge", (3, 0, 2)), ("crops", (2, 0, 1))])
def test_from_files_to_prepared_cases(layout, counts, request, tmp_path):
    root = request.getfixturevalue(layout)
    built = build_dataset_manifest("la2018", root, tmp_path / "out" / "la.json", workers=1)
    assert tuple(built.manifest.counts.values()) == counts
    problems = check_manifest(read_manifest(built.path))
    assert [problem for problem in problems if problem.severity == "error"] == []
    assert any("testing has" in note and "published are 54" in note for note in built.notes)
    store = prepare_cases(
        manifest=built.path, store_dir=tmp_path / "store", input_shape=(1, 4, 16, 16), workers=1, progress=False
    )
    case = store.case(0)
    np.testing.assert_array_equal(case.mask > 0, volume(0)[1] > 0)
    assert case.image[0][case.mask > 0].min() > case.image[0][case.mask == 0].max()


@pytest.mark.parametrize("value", [0, -1.5, "wide", True])
def test_spacing_is_a_length(challenge, tmp_path, value):
    with pytest.raises(InputError, match=f"spacing: must be a positive number or null, got {value!r}"):
        run(challenge, tmp_path, spacing=value)


def test_small_numbers_are_kept_small():
    assert smallest_type(np.array([0, 255], np.int16)).dtype == np.uint8
    assert smallest_type(np.array([-1, 3], np.int16)).dtype == np.int16
    assert smallest_type(np.array([0.5, 1], np.float32)).dtype == np.float32


@pytest.mark.parametrize("hard", [True, False])
def test_series_of_linked_files(tmp_path, monkeypatch, hard):
    """As version control of large files has them: relative links, which mean another place in another folder."""
    (tmp_path / "data" / "store").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "data" / "store" / "1").write_bytes(b"a")
    (tmp_path / "data" / "a.dcm").symlink_to("store/1")

    def refuse(*_):
        raise OSError("another file system")

    if not hard:
        monkeypatch.setattr("os.link", refuse)
    make_series_folder(tmp_path / "links", files=[tmp_path / "data" / "a.dcm"])
    link = tmp_path / "links" / "00000.dcm"
    assert link.is_symlink() != hard and link.read_bytes() == b"a"


def test_a_case_of_a_list_that_is_not_there(challenge, tmp_path):
    (challenge / "train.list").write_text(f"{NAMES[0]}\n{NAMES[8]}\n")
    first = build_dataset_manifest("la2018", challenge, challenge / "la.json", workers=1)
    assert [entry.where for entry in first.left_out if "the list of training names it" in entry.reason] == [NAMES[8]]
    again = build_dataset_manifest("la2018", challenge, challenge / "la.json", workers=1)
    assert again.left_out == first.left_out  # the manifest lies in the data set's folder
