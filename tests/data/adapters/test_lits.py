"""LiTS: volumes and masks in batches, headers that do not agree, test volumes without masks."""

from __future__ import annotations

import struct

import nibabel
import numpy as np
import pytest

from medcoss_components.data.adapters.converting import make_files
from medcoss_components.data.adapters.lits import find, write_on_grid
from medcoss_components.data.case_store import prepare_cases
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import check_manifest
from medcoss_components.data.masks import read_labelled
from medcoss_components.data.modalities import get_modality
from medcoss_components.errors import InputError

from .miniatures import recipe_source
from .miniatures_ct import body, liver, save_nifti, write_lits

SHAPE = (24, 20, 18)


@pytest.fixture
def root(tmp_path):
    """Volumes 0, 1 (first batch) and 28 (second)."""
    return write_lits(tmp_path / "lits", (0, 1, 28))


def source(root, **settings):
    return recipe_source("lits", root, files_dir=root.parent / "m.files", **settings)


def reasons(left):
    return {entry.where: entry.reason for entry in left}


class TestFind:
    def test_pairs(self, root):
        look = source(root)
        found, left = find(look)
        assert [item.name for item in found] == [
            "Training Batch 1/volume-0",
            "Training Batch 1/volume-1",
            "Training Batch 2/volume-28",
        ]
        assert found[0].label == root / "Training Batch 1" / "segmentation-0.nii"
        assert found[0].size == SHAPE and not found[0].patient and not found[0].split
        assert left == [] and look.notes == [] and not look.files_dir.exists()

    def test_compressed_files_in_one_folder(self, tmp_path):
        for number in (3, 10):
            save_nifti(tmp_path / f"volume-{number}.nii.gz", body(SHAPE), (1, 1, 2))
            save_nifti(tmp_path / f"segmentation-{number}.nii.gz", liver(SHAPE), (1, 1, 2))
        found, left = find(source(tmp_path))
        assert [item.name for item in found] == ["volume-10", "volume-3"] and left == []

    def test_test_volumes_have_no_masks(self, root):
        save_nifti(root / "LITS-Challenge-Test-Data" / "test-volume-0.nii", body(SHAPE, seed=9), (1, 1, 2))
        found, left = find(source(root))
        assert len(found) == 3
        assert "no mask" in reasons(left)["LITS-Challenge-Test-Data/test-volume-0.nii"]
        found, left = find(source(root, unlabelled=True))
        assert len(found) == 4 and found[0].label is None and left == []

    def test_defects_are_left_out(self, root):
        first = root / "Training Batch 1"
        (first / "segmentation-1.nii").rename(first / "segmentation-7.nii")
        (root / "Training Batch 2" / "volume-28.nii").write_bytes(b"no NIfTI")
        save_nifti(root / "again" / "volume-0.nii", body(SHAPE), (1, 1, 2))
        save_nifti(first / "volume-5.nii", body(SHAPE, seed=5), (1, 1, 2))
        save_nifti(first / "segmentation-5.nii", liver((24, 20, 17)), (1, 1, 2))
        write_lits(root, (6, 8))
        for name in ("volume-6.nii", "segmentation-8.nii"):
            whole = (first / name).read_bytes()
            (first / name).write_bytes(whole[: len(whole) - 100])
        (first / "notes.docx").write_bytes(b"x")
        (root / "README.txt").write_bytes(b"x")
        (root / "Training_Batch1.zip").write_bytes(b"x")
        found, left = find(source(root))
        assert [item.name for item in found] == ["Training Batch 1/volume-0"]
        why = reasons(left)
        assert why.pop("Training Batch 2/segmentation-28.nii") == "its volume is left out"
        assert why.pop("Training Batch 1/segmentation-6.nii") == "its volume is left out"
        assert "no mask" in why.pop("Training Batch 1/volume-1.nii")
        assert why.pop("Training Batch 1/segmentation-7.nii") == "a mask without its volume"
        assert "cannot be read" in why.pop("Training Batch 2/volume-28.nii")
        assert why.pop("again/volume-0.nii") == "Training Batch 1/volume-0.nii has this number too"
        assert "has (24, 20, 17) voxels, the volume (24, 20, 18)" in why.pop("Training Batch 1/volume-5.nii")
        assert "truncated, it has" in why.pop("Training Batch 1/volume-6.nii")
        assert "truncated, it has" in why.pop("Training Batch 1/segmentation-8.nii")
        assert why.pop("Training Batch 1/volume-8.nii") == "its mask cannot be read"
        assert "no file of LiTS" in why.pop("Training Batch 1/notes.docx")
        assert why == {"Training_Batch1.zip": "an archive; unpack it"}

    def test_headers_without_geometry(self, root):
        write_lits(root, (29,), spacing=(1, 1, 1))
        look = source(root)
        assert len(find(look)[0]) == 4
        assert look.notes[0].startswith("1 volumes have a header without geometry") and "volume-29.nii" in look.notes[0]
        found, left = find(source(root, without_geometry="leave_out"))
        assert len(found) == 3
        assert reasons(left) == {
            "Training Batch 2/volume-29.nii": "its header gives no voxel size",
            "Training Batch 2/segmentation-29.nii": "its volume is left out",
        }

    def test_wrong_layout_and_setting(self, tmp_path):
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "liver_0.nii").write_bytes(b"x")
        with pytest.raises(InputError, match=r"holds no file volume-<n>.nii. Give the folder .* Training Batch 1"):
            find(source(tmp_path))
        with pytest.raises(InputError, match="without_geometry must be one of keep, leave_out, got 'drop'"):
            find(source(tmp_path, without_geometry="drop"))
        with pytest.raises(InputError, match="no such folder"):
            find(source(tmp_path / "none"))


class TestMasksWithAnotherHeader:
    def other_header(self, root, dtype=np.uint8):
        """The mask of volume 1 with the voxel size of its volume lost and its first axis mirrored."""
        return save_nifti(root / "Training Batch 1" / "segmentation-1.nii", liver(SHAPE).astype(dtype), (1, -1, 1))

    def test_a_mask_of_the_same_place_in_another_order_is_read_as_it_is(self, root):
        mask = root / "Training Batch 1" / "segmentation-0.nii"
        stored = nibabel.load(mask, mmap=False)
        nibabel.save(stored.as_reoriented([[0, -1], [1, 1], [2, -1]]), mask)
        look = source(root)
        found, _ = find(look)
        assert found[0].label == mask and look.notes == []
        image, _, labels = read_labelled(found[0].path, mask, modality=get_modality("ct"))
        np.testing.assert_array_equal(labels > 0, image > 0)

    def test_a_copy_has_the_header_of_the_volume(self, root):
        mask = self.other_header(root, np.float32)
        look = source(root)
        found, left = find(look)
        assert len(found) == 3 and left == []
        label = found[1].label
        assert label.parent == look.files_dir and label.name.endswith(".nii.gz") and "segmentation" not in label.name
        made, volume = nibabel.load(label), nibabel.load(found[1].path)
        np.testing.assert_array_equal(np.asanyarray(made.dataobj), liver(SHAPE))  # voxel by voxel
        np.testing.assert_allclose(made.affine, volume.affine)
        assert made.get_data_dtype() == np.uint8
        with pytest.raises(InputError, match="mm beside its image"):
            read_labelled(found[1].path, mask, modality=get_modality("ct"))
        image, _, labels = read_labelled(found[1].path, label, modality=get_modality("ct"))
        assert (image[labels > 0] > 0).all() and (image[labels == 0] < 0).all()
        assert look.notes[0].startswith("1 masks say another position")
        before = label.stat().st_mtime_ns
        assert find(source(root))[0][1].label == label and label.stat().st_mtime_ns == before  # made once

    def test_values_that_are_no_labels(self, root, tmp_path):
        save_nifti(root / "Training Batch 1" / "segmentation-1.nii", liver(SHAPE) * np.float32(0.5), (1, -1, 1))
        found, left = find(source(root))
        assert len(found) == 2
        assert (
            "a file made of it failed: mask values must be whole numbers"
            in reasons(left)["Training Batch 1/volume-1.nii"]
        )
        with pytest.raises(InputError, match="segmentation-9.nii: cannot be read"):
            write_on_grid(tmp_path / "a.nii.gz", mask=tmp_path / "segmentation-9.nii", volume=found[0].path, size=None)
        assert make_files([], description="nothing") == {}


class TestVoxelSizes:
    @pytest.mark.parametrize(("suffix", "scaled"), [(".nii", False), (".nii.gz", False), (".nii", True)])
    def test_copies_have_the_given_size(self, tmp_path, suffix, scaled):
        root = write_lits(tmp_path / "lits", (0, 1))
        stored = body(SHAPE, seed=28)
        volume = save_nifti(root / f"volume-28{suffix}", stored, (-1, 1, -1))
        if scaled:
            content = volume.read_bytes()  # slope and intercept stand at byte 112 of the header
            volume.write_bytes(content[:112] + struct.pack("<ff", 2, -3) + content[120:])
        save_nifti(root / f"segmentation-28{suffix}", liver(SHAPE), (-1, 1, -1))
        look = source(root, voxel_sizes={28: [0.5, 0.75, 2]}, without_geometry="leave_out")
        found, left = find(look)
        item = next(item for item in found if item.name == "volume-28")
        assert left == [] and len(found) == 3 and item.files == (volume,) and item.size == SHAPE
        assert item.path.parent == item.label.parent == look.files_dir
        np.testing.assert_allclose(nibabel.load(item.path).affine, np.diag([-0.5, 0.75, -2, 1]))
        made = nibabel.load(item.path).dataobj
        np.testing.assert_array_equal(made.get_unscaled(), nibabel.load(volume).dataobj.get_unscaled())
        assert (made.slope, made.inter) == ((2, -3) if scaled else (1, 0))
        image, spacing, labels = read_labelled(item.path, item.label, modality=get_modality("ct"))
        assert spacing == (2.0, 0.75, 0.5) and (image[labels > 0] > 0).all() and (image[labels == 0] < 0).all()
        assert look.notes == ["1 volumes have the voxel size that the settings give; copies are used."]

    def test_volumes_without_mask(self, root):
        (root / "Training Batch 1" / "segmentation-0.nii").unlink()
        found, _ = find(source(root, voxel_sizes={"0": [1, 1, 5]}, unlabelled=True))
        assert found[0].label is None and nibabel.load(found[0].path).header.get_zooms() == (1, 1, 5)

    @pytest.mark.parametrize("value", [[28], {28: 1}, {28: [1, 2]}, {28: [1, 0, 1]}, {28: ["a", 1, 1]}, 5])
    def test_bad_values(self, root, value):
        with pytest.raises(InputError, match="voxel_sizes must be numbers of volumes with three sizes in mm"):
            find(source(root, voxel_sizes=value))

    def test_no_such_volume(self, root):
        with pytest.raises(InputError, match="voxel_sizes names volume 99, which is not there"):
            find(source(root, voxel_sizes={99: [1, 1, 1]}))


def test_manifest_and_prepared_case(tmp_path):
    root = write_lits(tmp_path / "lits", range(5))
    turned = np.diag([-0.75, -0.75, -2.5, 1.0])  # volume and mask run from head to feet in the file
    turned[2, 3] = 2.5 * (SHAPE[2] - 1)
    for name, array in (("volume", body(SHAPE, seed=4)), ("segmentation", liver(SHAPE))):
        save_nifti(root / "Training Batch 1" / f"{name}-4.nii", array[:, :, ::-1], turned)
    built = build_dataset_manifest("lits", root, tmp_path / "lits.json", workers=1)
    assert built.manifest.counts == {"training": 4, "validation": 0, "testing": 1} and built.left_out == ()
    inside = [build_dataset_manifest("lits", root, root / "m.json", workers=1) for _ in range(2)]
    assert inside[0].manifest.hash == inside[1].manifest.hash and not inside[1].left_out  # nothing of the first build
    assert any("all has 5 items, published are 131 (-126)" in note for note in built.notes)
    assert len({item.group for split in ("training", "testing") for item in built.manifest.items(split)}) == 5
    assert not [problem for problem in check_manifest(built.path, workers=1) if problem.severity == "error"]
    for split in ("training", "testing"):
        store = prepare_cases(
            manifest=built.path,
            store_dir=tmp_path / "store",
            split=split,
            input_shape=(1, 8, 8, 8),
            preparation={"spacing": [2.5, 1.5, 1.5]},
            workers=1,
            progress=False,
        )
        for row in range(len(store)):
            case = store.case(row)
            assert case.image.shape == (1, 18, 10, 12) == (1, *case.mask.shape)  # half the pixels, all the slices
            z, y, x = np.nonzero(case.mask)
            assert set(np.unique(case.mask)) == {0, 1, 2} and (z.min(), z.max()) == (1, 16)
            assert x.min() >= 5 and y.max() <= 5  # RAS falls along the file's axes: last columns left, first rows front
            assert np.nonzero(case.mask == 2)[2].max() < x.max()
            assert case.image[0, 8, 2, 8] > 0 and case.image[0, 8, 2, 2] < -900 and case.image[0, 8, 8, 8] < -900
