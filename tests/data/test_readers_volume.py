"""NIfTI and NRRD: the canonical orientation is checked against voxels whose place in the patient is known."""

import nibabel
import numpy as np
import pytest
import SimpleITK

from medcoss_components.data.readers import read_volume
from medcoss_components.data.readers_common import rescale
from medcoss_components.errors import InputError

SHAPE = (4, 6, 8)


def save_nifti(path, array, affine=None, **header):
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        getattr(image.header, f"set_{name}")(*value)
    nibabel.save(image, path)
    return path


def place_of(volume, index):
    """LPS position in mm of voxel (z, y, x)."""
    return (volume.affine @ [*index[::-1], 1])[:3]


def random_voxels(dtype=np.int16):
    return np.random.default_rng(0).integers(0, 1000, SHAPE).astype(dtype)


def test_ras_nifti_is_flipped_to_left_and_posterior(tmp_path):
    voxels = random_voxels()
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", voxels, np.diag([1.0, 2.0, 3.0, 1.0])))
    np.testing.assert_array_equal(volume.array, voxels[::-1, ::-1, :].transpose(2, 1, 0))
    assert volume.array.dtype == np.int16
    assert volume.array.flags["C_CONTIGUOUS"]
    assert (volume.spacing, volume.unit) == ((3.0, 2.0, 1.0), "a.u.")
    np.testing.assert_allclose(place_of(volume, (0, 0, 0)), [-3, -10, 0])


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1), (1, -1, -1)])
def test_every_storage_order_gives_the_same_volume(tmp_path, axes, signs):
    """The same patient stored with permuted and flipped axes must be read as the same array."""
    patient = random_voxels()  # axes: right -> left, front -> back, foot -> head; 1, 2 and 3 mm
    stored = patient.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.zeros((4, 4))
    for axis, (target, sign) in enumerate(zip(axes, signs, strict=True)):
        lps_to_ras = (-1, -1, 1)[target]
        affine[target, axis] = sign * lps_to_ras * (target + 1)
        affine[target, 3] += lps_to_ras * (target + 1) * (0 if sign > 0 else SHAPE[target] - 1)
    affine[3, 3] = 1
    volume = read_volume(save_nifti(tmp_path / "a.nii", stored, affine))
    np.testing.assert_array_equal(volume.array, patient.transpose(2, 1, 0))
    assert volume.spacing == (3.0, 2.0, 1.0)
    np.testing.assert_allclose(volume.affine, np.diag([1.0, 2.0, 3.0, 1.0]), atol=1e-6)


def oblique(degrees):
    """Rotation about the x axis."""
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])


@pytest.mark.parametrize(("degrees", "expected"), [(20, (2, 1, 0)), (70, (1, 2, 0))])
def test_oblique_volumes_go_to_the_nearest_axes_without_resampling(tmp_path, degrees, expected):
    voxels = random_voxels()
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ oblique(degrees) @ np.diag([1.0, 2.0, 3.0])
    volume = read_volume(save_nifti(tmp_path / "a.nii", voxels, affine))
    turned = voxels.transpose(expected)
    np.testing.assert_array_equal(volume.array, turned if degrees == 20 else turned[:, ::-1])
    np.testing.assert_allclose(volume.spacing, np.array([1.0, 2.0, 3.0])[list(expected)], rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("uint8", "int16"), ("int16", "int16"), ("uint16", "int16"), ("int32", "int16"), ("float64", "float32")],
)
def test_integers_that_fit_become_int16(tmp_path, dtype, expected):
    voxels = (random_voxels() % 256).astype(dtype)
    array = read_volume(save_nifti(tmp_path / "a.nii", voxels, np.diag([-1.0, -1.0, 1.0, 1.0]))).array
    assert array.dtype == expected
    np.testing.assert_array_equal(array, voxels.transpose(2, 1, 0))


def test_integers_that_do_not_fit_become_float(tmp_path):
    voxels = np.full(SHAPE, 40000, np.uint16)
    array = read_volume(save_nifti(tmp_path / "a.nii", voxels)).array
    assert (array.dtype, array.max()) == (np.float32, 40000)


def test_scale_of_the_header_is_applied(tmp_path):
    path = save_nifti(tmp_path / "a.nii", np.full(SHAPE, 3, np.int16))
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.5, 10.0], "<f4").tobytes()  # scl_slope, scl_inter of the NIfTI-1 header
    path.write_bytes(content)
    array = read_volume(path).array
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, 11.5)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("meter", 1000), ("micron", 0.001), ("unknown", 1)])
def test_units_of_length(tmp_path, unit, factor):
    volume = read_volume(save_nifti(tmp_path / "a.nii", random_voxels(), np.diag([1.0, 2, 3, 1]), xyzt_units=(unit,)))
    np.testing.assert_allclose(volume.spacing, np.array([3, 2, 1]) * factor, rtol=1e-5)


def test_trailing_axis_of_one_is_dropped_and_time_is_refused(tmp_path):
    assert read_volume(save_nifti(tmp_path / "a.nii", random_voxels()[..., None])).array.shape == SHAPE[::-1]
    with pytest.raises(InputError, match=r"b.nii: must be a 3D volume, got shape \(4, 6, 8, 2\)"):
        read_volume(save_nifti(tmp_path / "b.nii", np.stack([random_voxels()] * 2, -1)))
    with pytest.raises(InputError, match=r"c.nii: must be a 3D volume, got shape \(4, 6\)"):
        read_volume(save_nifti(tmp_path / "c.nii", random_voxels()[..., 0]))


def test_complex_voxels_are_refused(tmp_path):
    with pytest.raises(InputError, match="voxels must be real numbers, got complex64"):
        read_volume(save_nifti(tmp_path / "a.nii", np.zeros(SHAPE, np.complex64)))


def test_nan_voxels_are_counted(tmp_path):
    voxels = np.zeros(SHAPE, np.float32)
    voxels[0, 1, :3] = np.nan
    with pytest.raises(InputError, match=r"a.nii.gz: 3 of 192 voxels are NaN or infinite"):
        read_volume(save_nifti(tmp_path / "a.nii.gz", voxels))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("share", [0.05, 0.6, 0.95])
def test_truncated_nifti(tmp_path, name, share):
    path = save_nifti(tmp_path / name, np.random.default_rng(0).normal(size=(20, 30, 10)).astype(np.float32))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=f"{name}: cannot be read, it is truncated, damaged"):
        read_volume(path)


def test_other_files_with_the_suffix(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match="a.nii: cannot be read"):
        read_volume(tmp_path / "a.nii")
    with pytest.raises(InputError, match="b.nii: no such file"):
        read_volume(tmp_path / "b.nii")
    (tmp_path / "c.raw").write_bytes(b"x")
    with pytest.raises(InputError, match="c.raw: unknown format; readable are .nii"):
        read_volume(tmp_path / "c.raw")


def test_unusable_affine(tmp_path):
    path = save_nifti(tmp_path / "a.nii", random_voxels())
    image = nibabel.load(path)
    header = image.header.copy()
    header["sform_code"], header["qform_code"] = 1, 0
    header["srow_x"], header["srow_y"] = [1, 0, 0, 0], [1, 0, 0, 0]
    content = bytearray(path.read_bytes())
    content[: len(header.binaryblock)] = header.binaryblock
    path.write_bytes(content)
    with pytest.raises(InputError, match="a.nii: the header's orientation or spacing is unusable"):
        read_volume(path)


def save_itk(path, voxels, *, direction=None, spacing=(1.0, 2.0, 3.0), origin=(5.0, 6.0, 7.0), vector=False):
    """``voxels`` in (z, y, x) order."""
    image = SimpleITK.GetImageFromArray(voxels, isVector=vector)
    if image.GetDimension() == 3:
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(np.asarray(np.eye(3) if direction is None else direction, float).ravel().tolist())
    SimpleITK.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nhdr"])
def test_lps_nrrd_is_read_as_it_lies(tmp_path, suffix):
    voxels = random_voxels()
    volume = read_volume(save_itk(tmp_path / f"a{suffix}", voxels))
    np.testing.assert_array_equal(volume.array, voxels)
    assert (volume.array.dtype, volume.spacing) == (np.int16, (3.0, 2.0, 1.0))
    np.testing.assert_allclose(place_of(volume, (0, 0, 0)), [5, 6, 7])


@pytest.mark.parametrize("degrees", [0, 25, 65, -80])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_nrrd_orientation_agrees_with_simpleitk(tmp_path, degrees, flips):
    voxels = random_voxels(np.float32)
    path = save_itk(tmp_path / "a.nrrd", voxels, direction=oblique(degrees) @ np.diag(flips))
    volume = read_volume(path)
    oracle = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "LPS")
    np.testing.assert_array_equal(volume.array, SimpleITK.GetArrayFromImage(oracle))
    np.testing.assert_allclose(volume.spacing, oracle.GetSpacing()[::-1])
    np.testing.assert_allclose(place_of(volume, (0, 0, 0)), oracle.GetOrigin())


def test_nrrd_with_several_values_or_dimensions(tmp_path):
    with pytest.raises(InputError, match="a.nrrd: has 3 values per voxel"):
        read_volume(save_itk(tmp_path / "a.nrrd", np.zeros((*SHAPE, 3), np.float32), vector=True))
    with pytest.raises(InputError, match=r"b.nrrd: must be a 3D volume, got shape \(6, 4\)"):
        read_volume(save_itk(tmp_path / "b.nrrd", np.zeros((4, 6), np.uint8)))


def test_truncated_nrrd(tmp_path):
    path = save_itk(tmp_path / "a.nrrd", np.random.default_rng(0).normal(size=(20, 30, 10)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="a.nrrd: cannot be read, it is truncated, damaged"):
        read_volume(path)


def test_nrrd_header_text_is_not_quoted(tmp_path):
    (tmp_path / "a.nrrd").write_text("NRRD0004\n# Patient SECRET\ntype: SECRET\n\n")
    with pytest.raises(InputError, match="a.nrrd: cannot be read") as caught:
        read_volume(tmp_path / "a.nrrd")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "slope", "intercept", "dtype", "expected"),
    [
        (np.array([0, 4095], np.uint16), 1, -1024, "int16", [-1024, 3071]),
        (np.array([0, 255], np.uint8), 1, 100, "int16", [100, 355]),
        (np.array([0, 65535], np.uint16), 1, -1024, "float32", [-1024, 64511]),
        (np.array([2, 4], np.int16), 0.5, 1, "float32", [2, 3]),
        (np.array([2, 4], np.int16), 1, 0.5, "float32", [2.5, 4.5]),
        (np.array([2.5], np.float64), 1, 0, "float32", [2.5]),
        (np.array([True, False]), 1, 0, "int16", [1, 0]),
    ],
)
def test_rescale(raw, slope, intercept, dtype, expected):
    values = rescale(raw, slope, intercept)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, expected)
