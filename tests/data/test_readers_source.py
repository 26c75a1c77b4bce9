"""A mask on the canonical grid goes back to exactly the voxels of the file it was read from."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from medcoss_components.data.readers import read_volume
from medcoss_components.data.readers_series import read_dicom_files
from medcoss_components.data.readers_source import source_grid
from medcoss_components.errors import InputError

VALUES = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
AFFINES = {
    "ras": np.diag([1.0, 2.0, 3.0, 1.0]),
    "flipped": np.array([[0, 0, -3.0, 7], [1.5, 0, 0, -2], [0, -2.0, 0, 4], [0, 0, 0, 1]]),
    "oblique": np.array([[0.9, -0.2, 0, 1], [0.3, 1.1, 0.1, 2], [0, -0.1, 2.0, 3], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", AFFINES)
def test_nifti_round_trip(tmp_path, name):
    path = tmp_path / "v.nii.gz"
    nibabel.save(nibabel.Nifti1Image(VALUES, AFFINES[name]), path)
    grid = source_grid(path)
    np.testing.assert_array_equal(grid.from_canonical(read_volume(path).array), VALUES)
    np.testing.assert_allclose(grid.affine_ras, nibabel.load(path).affine, atol=1e-6)
    assert grid.shape == (4, 5, 6) and grid.codes == (0, 2)


def test_nifti_with_a_fourth_axis_and_metres(tmp_path):
    image = nibabel.Nifti1Image(VALUES[..., None], AFFINES["ras"])
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "v.nii")
    grid = source_grid(tmp_path / "v.nii")
    assert grid.shape == (4, 5, 6)
    np.testing.assert_allclose(np.diag(grid.affine_ras), [1000, 2000, 3000, 1])


def test_nrrd_round_trip(tmp_path):
    import SimpleITK

    image = SimpleITK.GetImageFromArray(VALUES)  # (z, y, x)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, -1))
    image.SetOrigin((5, 6, 7))
    path = tmp_path / "v.nrrd"
    SimpleITK.WriteImage(image, str(path))
    grid = source_grid(path)
    np.testing.assert_array_equal(grid.from_canonical(read_volume(path).array), VALUES.T)
    np.testing.assert_allclose(grid.affine @ [1, 1, 1, 1], [4, 8, 4, 1])


def test_series_round_trip(write_series):
    """Files are named against the order of their places."""
    folder = write_series(places=(4.0, 2.0, 0.0), pixels=_plane)
    grid = source_grid(folder)
    assert [file.name for file, _ in grid.frames] == ["02.dcm", "01.dcm", "00.dcm"]
    restored = grid.from_canonical(read_volume(folder).array)
    assert restored.shape == grid.shape == (5, 4, 3)
    np.testing.assert_array_equal(restored[:, :, 2].T, _plane(0) - 1000)
    np.testing.assert_allclose(grid.affine @ [1, 1, 1, 1], [0.75, 0.5, 2, 1])


def _plane(number):
    return (np.arange(20, dtype=np.int16) + 100 * number).reshape(4, 5)


def test_files_of_one_series_among_others(write_series):
    folder = write_series(SeriesInstanceUID=lambda n: "1.2.3" if n < 2 else "1.2.4")
    chosen = sorted(folder.iterdir())[:2]
    with pytest.raises(InputError, match="holds 2 DICOM series"):
        source_grid(folder)
    assert source_grid(folder, chosen).shape == (5, 4, 2)
    volume = read_dicom_files(chosen, path=folder, expected_modality="CT")
    assert volume.array.shape == (2, 4, 5) and volume.unit == "HU"
    with pytest.raises(InputError, match="modality is 'CT', expected MR"):
        read_dicom_files(chosen, path=folder, expected_modality="MR")


def test_another_shape_and_no_volume(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VALUES, AFFINES["ras"]), tmp_path / "v.nii")
    with pytest.raises(InputError, match=r"\(4, 5, 6\) voxels .* \(6, 5, 3\)"):
        source_grid(tmp_path / "v.nii").from_canonical(np.zeros((6, 5, 3)))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="a.txt: no volume file"):
        source_grid(tmp_path / "a.txt")
