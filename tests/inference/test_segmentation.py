"""Masks lie where the structure is in the file, whatever its format, orientation and spacing."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from PIL import Image

from medcoss_components.data.readers import read_volume
from medcoss_components.data.task_inputs import TaskTransform
from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError
from medcoss_components.inference import segmentation
from medcoss_components.inference.outputs import CasesFailedError

OBLIQUE = np.array([[0, 0.3, -3.0, 7], [1.5, 0, 0, -2], [0, -2.0, 0.1, 4], [0, 0, 0, 1]])


def mask_of(folder, ending):
    (path,) = (folder / "out" / "masks").glob(f"*{ending}")
    return path


def expected(array):
    return np.where(array == 900, 2, np.where(array == 500, 1, 0))


@pytest.mark.parametrize("affine", [None, OBLIQUE, np.diag([2.0, 1.0, -1.0, 1.0])])
def test_nifti(tmp_path, nifti, ball, segmenter, affine):
    path = nifti(tmp_path / "in" / "v.nii.gz", ball, affine)
    predictor = segmenter(path)
    predictor.run()
    written, source = nibabel.load(mask_of(tmp_path, ".nii.gz")), nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected(np.asarray(source.dataobj)))
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
    (row,) = predictor.rows.values()
    voxel = abs(np.linalg.det(source.affine[:3, :3])) if affine is not OBLIQUE else np.prod(source.header.get_zooms())
    assert (row["voxels/organ"], row["voxels/core"]) == (120, 8)
    assert row["volume_ml/organ"] == pytest.approx(120 * voxel / 1000, abs=2e-4)
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert document["mask_values"] == {"organ": 1, "core": 2} and document["threshold"] == 0.5


def test_nrrd_becomes_nifti(tmp_path, ball, segmenter):
    import SimpleITK

    image = SimpleITK.GetImageFromArray(ball)
    image.SetSpacing((1.0, 1.5, 3.0))
    image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, -1))
    image.SetOrigin((5, 6, 7))
    SimpleITK.WriteImage(image, str(tmp_path / "v.nrrd"))
    segmenter(tmp_path / "v.nrrd").run()
    written = SimpleITK.ReadImage(str(mask_of(tmp_path, ".nii.gz")))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(written), expected(ball))
    for name in ("GetSpacing", "GetDirection", "GetOrigin"):
        np.testing.assert_allclose(getattr(written, name)(), getattr(image, name)(), atol=1e-5)


def test_series_becomes_nifti_at_its_place(tmp_path, series, ball, segmenter):
    segmenter(series(tmp_path / "in", ball)).run()
    written, source = read_volume(mask_of(tmp_path, ".nii.gz")), read_volume(tmp_path / "in")
    np.testing.assert_array_equal(written.array, expected(ball))
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)


def test_resampled_case_comes_back(tmp_path, nifti, ball, segmenter, brighter):
    """Prepared on a coarser grid and cut half-way between air and block, -250 HU: the block comes back."""
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    big = np.repeat(np.repeat(np.repeat(ball, 2, 0), 2, 1), 2, 2)
    path = nifti(tmp_path / "v.nii.gz", big, affine)
    network = brighter(-250 / 1024, 0.7)
    segmenter(path, network=network, preparation={"spacing": [2.0, 1.25, 1.6]}).run()
    labels = np.asarray(nibabel.load(mask_of(tmp_path, ".nii.gz")).dataobj).T
    assert labels.shape == big.shape
    true = expected(big) > 0
    assert 2 * np.logical_and(labels > 0, true).sum() / ((labels > 0).sum() + true.sum()) > 0.9


def test_small_volume_is_padded_and_cut_again(tmp_path, nifti, segmenter):
    small = np.full((2, 4, 5), -1000, np.int16)
    small[1, 1:3, 2] = 500
    path = nifti(tmp_path / "v.nii.gz", small)
    segmenter(path).run()
    np.testing.assert_array_equal(np.asarray(nibabel.load(mask_of(tmp_path, ".nii.gz")).dataobj).T, expected(small))


def test_same_as_the_inferer_alone(tmp_path, nifti, segmenter):
    """A network that looks at the place in the window: the blended result equals MONAI's."""

    class Local(torch.nn.Module):
        def forward(self, inputs):
            ramp = torch.linspace(-1, 1, inputs.shape[-1])
            return torch.cat([inputs + ramp, inputs - ramp], dim=1)

    volume = np.random.default_rng(0).integers(-500, 500, (9, 11, 13)).astype(np.int16)
    path = nifti(tmp_path / "v.nii.gz", volume)
    predictor = segmenter(path, network=Local(), regions={"a": [1, 2], "b": [2, 3]})
    predictor.run()
    inputs = torch.from_numpy(volume[None, None] / np.float32(1024))
    wanted = (predictor.inferer(inputs, Local())[0].sigmoid() > 0.5).numpy()
    for name, mask in zip("ab", wanted, strict=True):
        written = np.asarray(nibabel.load(mask_of(tmp_path, f"_{name}.nii.gz")).dataobj).T
        assert (written != mask).sum() <= 1  # rounding at exactly 0.5


def test_what_the_label_map_cannot_tell_is_noted(tmp_path, nifti, ball, segmenter, brighter):
    """The core is found wherever there is tissue, the organ only in its brightest part."""
    predictor = segmenter(nifti(tmp_path / "a.nii", ball), network=brighter(0.7, 0.2))
    predictor.run()
    (row,) = predictor.rows.values()
    assert (row["voxels/organ"], row["voxels/core"]) == (8, 120)
    assert row["note"] == "one value a voxel: the label map differs from the regions' own masks in organ 112 voxels"


def test_threshold(tmp_path, nifti, ball, segmenter, brighter):
    """The core's input is 900 / 1024: its probability for level 0.875 is sigmoid(0.78) = 0.686."""
    path = nifti(tmp_path / "v.nii.gz", ball)
    counts = []
    for number, threshold in enumerate((0.68, 0.69)):
        predictor = segmenter(
            path,
            network=brighter(0.875),
            regions={"core": "any"},
            threshold=threshold,
            output_dir=tmp_path / str(number),
        )
        predictor.run()
        counts += [row["voxels/core"] for row in predictor.rows.values()]
    assert counts == [8, 0]


def test_picture(tmp_path, segmenter, brighter):
    """A picture of 20 x 18 is fitted into 8 x 12 and comes back in its own size."""
    picture = np.full((20, 18), 20, np.uint8)
    picture[5:15, 4:12] = 230
    write_picture(tmp_path / "a.png", picture)
    predictor = segmenter(tmp_path / "a.png", "xray", network=brighter(0.5), regions={"spot": "any"}, overlay=True)
    predictor.run()
    mask = np.asarray(Image.open(mask_of(tmp_path, ".png")))
    true = picture > 100
    assert mask.shape == (20, 18) and 2 * (mask.astype(bool) & true).sum() / (mask.sum() + true.sum()) > 0.85
    (row,) = predictor.rows.values()
    assert row["pixels/spot"] == mask.sum() and row["area_mm2/spot"] is None
    assert Image.open(tmp_path / "out" / "overlays" / f"{row['id']}.png").size[0] > 300


def test_picture_as_a_whole(tmp_path, segmenter, brighter):
    """An inferer that calls the network once."""
    write_picture(tmp_path / "a.png", np.repeat(np.arange(8, dtype=np.uint8) * 30, 12).reshape(8, 12))
    predictor = segmenter(
        tmp_path / "a.png",
        "xray",
        network=brighter(0.5),
        regions={"spot": "any"},
        inferer=SimpleInferer(),
        preparation={"percentiles": None},
    )
    predictor.run()
    assert np.asarray(Image.open(mask_of(tmp_path, ".png"))).tolist() == [
        [int(row * 30 > 127)] * 12 for row in range(8)
    ]


def test_overlay_of_a_volume_and_resume(tmp_path, nifti, ball, segmenter):
    nifti(tmp_path / "in" / "a.nii.gz", ball)
    nifti(tmp_path / "in" / "b.nii.gz", ball).write_bytes(b"damaged")
    first = segmenter(tmp_path / "in", overlay=True)
    with pytest.raises(CasesFailedError, match="1 of 2 cases failed"):
        first.run()
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 1
    nifti(tmp_path / "in" / "b.nii.gz", np.full((10, 14, 18), -1000, np.int16) + (ball > 600) * np.int16(100))
    again = segmenter(tmp_path / "in", overlay=True)
    again.run()
    assert again.network.calls < first.network.calls * 1.1 and len(again.rows) == 2
    assert [row["voxels/organ"] for row in again.rows.values()] == [120, 0]
    with pytest.raises(InputError, match="threshold: 0.5 -> 0.4"):
        segmenter(tmp_path / "in", overlay=True, threshold=0.4).run()


def test_overlay_shows_what_the_network_sees(tmp_path, nifti, ball, segmenter, brighter, monkeypatch):
    """The plane is one of the file's, though 2 mm became 1 mm; values beyond the input's clip stretch no greys."""
    calls = []
    monkeypatch.setattr(segmentation, "write_overlay", lambda path, **options: calls.append(options))
    transform = TaskTransform(
        modality="ct", input_shape=(1, 4, 6, 8), regions={"organ": [1, 2]}, intensity={"clip": [-100, 300]}
    )
    ball[5, 2:12, 2:16] = 900
    segmenter(
        nifti(tmp_path / "a.nii", ball, np.diag([-1.0, -1.0, 2.0, 1.0])),
        network=brighter(299.0),
        regions={"organ": [1, 2]},
        preprocessing=transform,
        overlay=True,
        preparation={"spacing": [1.0, 1.0, 1.0]},
    ).run()
    (options,) = calls
    assert options["caption"] == "plane 6 of 10, feet to head"
    assert (options["picture"].min(), options["picture"].max()) == (-100, 300)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"formats": ["png"]}, "'png' is none of nifti, dicom_seg or auto"),
        ({"formats": []}, "at least one of nifti, dicom_seg, got none"),
    ],
)
def test_wrong_arguments(tmp_path, nifti, ball, segmenter, options, message):
    path = nifti(tmp_path / "v.nii.gz", ball)
    with pytest.raises(InputError, match=message):
        segmenter(path, **options)


def test_cases_of_another_kind(tmp_path, nifti, ball, find):
    from medcoss_components.inference.cases import InferenceLoader
    from medcoss_components.inference.segmentation import SegmentationPredictor

    loader = InferenceLoader(dataset=find(nifti(tmp_path / "v.nii.gz", ball)))
    with pytest.raises(InputError, match="must be of kind segmentation, are classification"):
        SegmentationPredictor(
            device="cpu", val_data_loader=loader, network=None, preprocessing=None, regions={}, output_dir=tmp_path
        )


@pytest.mark.parametrize(("value", "message"), [(0.0, "3 names for a network with 2"), (float("nan"), "not finite")])
def test_network_that_does_not_fit(tmp_path, nifti, ball, segmenter, value, message):
    class Wrong(torch.nn.Module):
        def forward(self, inputs):
            return inputs.repeat(1, 2, 1, 1, 1) + value

    path = nifti(tmp_path / "v.nii.gz", ball)
    regions = {"a": [1], "b": [2]} | ({"c": [3]} if value == 0 else {})
    with pytest.raises(CasesFailedError, match=message):
        segmenter(path, network=Wrong(), regions=regions).run()
