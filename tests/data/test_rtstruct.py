"""Areas inside contours: against loops over every pixel, and on grids with swapped and flipped axes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from medcoss_components.data.adapters.made_volumes import save_nifti
from medcoss_components.data.masks import read_mask_of
from medcoss_components.data.readers import read_volume
from medcoss_components.data.readers_series import dicom_stack, series_files
from medcoss_components.data.rtstruct import Structure, StructureSet, fill_contours, fill_polygons, read_structure_set
from medcoss_components.errors import InputError


def slow_fill(polygons, shape):
    """Even-odd rule with a ray to the right, pixel by pixel and edge by edge."""
    inside = np.zeros(shape, bool)
    for row in range(shape[0]):
        for column in range(shape[1]):
            crossings = 0
            for polygon in polygons:
                for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                    if (y0 <= row) != (y1 <= row):
                        crossings += x0 + (row - y0) / (y1 - y0) * (x1 - x0) > column
            inside[row, column] = crossings % 2
    return inside


def random_polygon(rng, size, points):
    return rng.uniform(-2, 14, (points, 2)) * size / 12


@pytest.mark.parametrize("seed", range(12))
def test_any_polygon_is_filled_as_by_loops(seed):
    """Concave, self-crossing, several at once, and partly outside of the 9 x 13 pixels."""
    rng = np.random.default_rng(seed)
    polygons = [random_polygon(rng, 12, points) for points in rng.integers(3, 9, 1 + seed % 3)]
    np.testing.assert_array_equal(fill_polygons(polygons, (9, 13)), slow_fill(polygons, (9, 13)))


@pytest.mark.parametrize("seed", range(4))
def test_polygons_through_pixel_centres_are_filled_as_by_loops(seed):
    polygons = [np.random.default_rng(seed).integers(-1, 10, (6, 2)).astype(float) for _ in range(2)]
    np.testing.assert_array_equal(fill_polygons(polygons, (8, 9)), slow_fill(polygons, (8, 9)))


def test_a_disc_has_its_area():
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    disc = np.stack([30.3 + 12 * np.cos(angles), 25.7 + 12 * np.sin(angles)], axis=1)
    filled = fill_polygons([disc], (50, 60))
    assert filled.sum() == pytest.approx(np.pi * 144, rel=0.01)
    rows, columns = np.nonzero(filled)
    assert (rows.mean(), columns.mean()) == pytest.approx((25.7, 30.3), abs=0.1)
    assert np.ptp(rows) == np.ptp(columns) == 23


def square(low, high):
    return np.array([[low, low], [high, low], [high, high], [low, high]], dtype=float)


def test_one_contour_inside_another_cuts_a_hole():
    filled = fill_polygons([square(0.5, 6.5), square(2.5, 4.5)], (8, 8))
    assert filled.sum() == 36 - 4
    assert not filled[3:5, 3:5].any() and filled[1:3, 1:7].all()


def test_neighbours_share_no_pixel():
    left, right = square(1, 4), square(1, 4) + [3, 0]
    first, second = fill_polygons([left], (6, 9)), fill_polygons([right], (6, 9))
    assert not (first & second).any() and first.sum() == second.sum() == 9


def test_a_polygon_outside_fills_nothing():
    assert not fill_polygons([square(20, 30), square(-9, -3)], (8, 9)).any()


AFFINES = {
    "axial": np.array([[0.5, 0, 0, -10], [0, 0.75, 0, 20], [0, 0, 2, 5], [0, 0, 0, 1.0]]),
    "coronal": np.array([[0.5, 0, 0, -10], [0, 0, 2, 20], [0, -0.75, 0, 5], [0, 0, 0, 1.0]]),
    "oblique": np.array([[0.48, 0.1, 0.3, 1], [-0.1, 0.7, 0.2, 2], [0, -0.1, 1.9, 3], [0, 0, 0, 1.0]]),
}


def to_position(affine, points, place):
    """LPS positions in mm of (column, row) points in a slice."""
    index = np.column_stack([points, np.full(len(points), place)])
    return index @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("name", AFFINES)
def test_contours_in_millimetres_find_their_voxels(name):
    affine, shape = AFFINES[name], (7, 9, 4)
    box = np.array([[1.5, 2.5], [5.5, 2.5], [5.5, 6.5], [1.5, 6.5]])
    contours = [to_position(affine, box, 1), to_position(affine, box + [0, 1], 3)]
    mask = fill_contours(contours, affine=affine, shape=shape)
    expected = np.zeros(shape, np.uint8)
    expected[2:6, 3:7, 1] = 1
    expected[2:6, 4:8, 3] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("directions", [[1, 0, 0, 0, 0, -1], [0, 0.8, 0.6, 1, 0, 0], [-1, 0, 0, 0, -1, 0]])
def test_a_mask_lies_on_its_series_however_it_was_scanned(write_series, tmp_path, directions):
    normal = np.cross(directions[:3], directions[3:])
    pixels = [np.random.default_rng(number).integers(0, 90, (9, 8)).astype(np.int16) for number in range(5)]
    for number in (1, 2):
        pixels[number][2:6, 3:7] += 500
    folder = write_series(
        range(5),
        Modality="MR",
        RescaleIntercept=0,
        ImageOrientationPatient=directions,
        ImagePositionPatient=lambda number: ([7, 8, 9] + 3.0 * number * normal).tolist(),
        pixels=lambda number: pixels[number],
    )
    stack = dicom_stack(series_files(folder), path=folder)
    box = np.array([[2.5, 1.5], [6.5, 1.5], [6.5, 5.5], [2.5, 5.5]])
    contours = [to_position(stack.affine, box, place) for place in (1, 2)]
    mask = fill_contours(contours, affine=stack.affine, shape=stack.shape)
    save_nifti(tmp_path / "mask.nii.gz", mask, stack.affine)
    np.testing.assert_array_equal(
        read_mask_of(read_volume(folder), tmp_path / "mask.nii.gz"), read_volume(folder).array >= 500
    )


def test_a_contour_across_slices_is_refused():
    tilted = np.array([[1.0, 1, 0], [5, 1, 1], [5, 5, 1], [1, 5, 0]])
    with pytest.raises(InputError, match=r"spans 1\.00 slices, it must lie in one"):
        fill_contours([tilted], affine=np.eye(4), shape=(8, 8, 4))


@pytest.mark.parametrize("place", [-1, 4])
def test_a_contour_outside_the_slices_is_refused(place):
    contour = to_position(np.eye(4), square(1, 5), place)
    with pytest.raises(InputError, match=f"at slice {place}, outside of the 4 slices"):
        fill_contours([contour], affine=np.eye(4), shape=(8, 8, 4))


def test_contours_around_no_centre_are_refused():
    contour = to_position(np.eye(4), square(1.2, 1.8), 2)
    with pytest.raises(InputError, match="no voxel centre lies inside the 1 contours"):
        fill_contours([contour], affine=np.eye(4), shape=(8, 8, 4))


def test_names_of_structures_are_unique():
    line = (square(1, 5),)
    drawn, empty = Structure("TV", line), Structure("TV", ())
    assert StructureSet(("1.2",), (empty, drawn)).structure("TV") is drawn
    twice = StructureSet(("1.2",), (drawn, Structure("TV", line), Structure("other", line)))
    assert twice.structure("other").name == "other"
    with pytest.raises(InputError, match="2 structures of the set"):
        twice.structure("TV")


def test_other_files_are_no_structure_sets(tmp_path, write_dicom, secret):
    path = write_dicom(tmp_path / "image.dcm", np.zeros((4, 5), np.int16))
    with pytest.raises(InputError, match=r"image\.dcm: no RTSTRUCT file") as caught:
        read_structure_set(path)
    assert secret not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_structure_set(tmp_path / "missing.dcm")


def test_warnings_quote_no_header_value(tmp_path, write_dicom, monkeypatch):
    """A value that breaks the standard is read without pydicom's warning, which would show it."""
    from pydicom import config

    from medcoss_components.data.readers_dicom import quieten

    quieten()  # what the test leaves behind is quiet
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.WARN)
    path = write_dicom(tmp_path / "set.dcm", np.zeros((4, 5), np.int16), Modality="RTSTRUCT", SOPInstanceUID="1.2.345")
    path.write_bytes(path.read_bytes().replace(b"1.2.345", b"1.2.x45"))
    quieten.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_structure_set(path).instance == "1.2.x45"
