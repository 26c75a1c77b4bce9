"""Vestibular-Schwannoma-SEG: miniatures of the archive's DICOM tree, of its renamed form and of its conversion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medcoss_components.data.adapters.vestibular_schwannoma import find
from medcoss_components.data.case_store import prepare_cases
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.readers import read_volume
from medcoss_components.data.rtstruct import read_structure_set
from medcoss_components.data.writers import write_nifti
from medcoss_components.errors import InputError

from .miniatures import recipe_source

COLUMNS, ROWS, SLICES = 24, 20, 6
SPACING = {"row": 0.75, "column": 0.5, "slice": 1.5}
ORIGIN = np.array([-6.0, 3.0, 10.0])
BOX = {"columns": (8, 14), "rows": (5, 12), "slices": (2, 5)}
"""Voxels of the tumor, first and end."""


def box_contours(spacing=SPACING):
    """Rectangles half a pixel around the tumor's centres, one per slice, as LPS points in mm."""
    (left, right), (top, bottom) = BOX["columns"], BOX["rows"]
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return [
        [
            ORIGIN + [(x - 0.5) * spacing["column"], (y - 0.5) * spacing["row"], place * spacing["slice"]]
            for x, y in corners
        ]
        for place in range(*BOX["slices"])
    ]


def write_structures(path, series, structures):
    """An RTSTRUCT file: name -> list of contours; a point and an open line stand beside the closed ones."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    dataset.Modality, dataset.PatientName = "RTSTRUCT", "SECRET^PATIENT"
    entry, study, frame = Dataset(), Dataset(), Dataset()
    entry.SeriesInstanceUID = series
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [entry], [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber = number, name, number
        shapes = [("CLOSED_PLANAR", contour) for contour in contours]
        shapes += [("POINT", [ORIGIN]), ("OPEN_PLANAR", contours[0][:3])] if contours else []
        drawn.ContourSequence = []
        for kind, points in shapes:
            contour = Dataset()
            contour.ContourGeometricType = kind
            contour.ContourData = [f"{value:.4f}" for point in points for value in point]
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


class Archive:
    """Writes patients as the archive names them."""

    def __init__(self, root, write_dicom):
        self.root, self.write_dicom = root / "Vestibular-Schwannoma-SEG", write_dicom

    def study(self, number):
        return self.root / f"VS-SEG-{number:03d}" / "06-25-2000-NA-NA-12345"

    def images(self, number, sequence="t1", places=range(SLICES), folder=None):
        """A series in reversed file order; the tumor is bright; returns its folder."""
        folder = folder or self.study(number) / f"5-{sequence}-mpr"
        for name, place in enumerate(reversed(places), start=1):
            pixels = np.random.default_rng(100 * number + place).integers(10, 200, (ROWS, COLUMNS)).astype(np.int16)
            if BOX["slices"][0] <= place < BOX["slices"][1]:
                pixels[slice(*BOX["rows"]), slice(*BOX["columns"])] += 1000
            self.write_dicom(
                folder / f"1-{name:02d}.dcm",
                pixels,
                Modality="MR",
                PatientID=f"VS-SEG-{number:03d}",
                SeriesInstanceUID=self.uid(number, sequence),
                SeriesDescription=f"{sequence}_mpr_tra_gk_v4",
                ImagePositionPatient=(ORIGIN + [0, 0, place * SPACING["slice"]]).tolist(),
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                PixelSpacing=[SPACING["row"], SPACING["column"]],
            )
        return folder

    def uid(self, number, sequence):
        return f"1.2.3.{number}.{sequence[1]}"

    def structures(self, number, structures, sequence="t1", name="1-1.dcm", folder=None):
        folder = folder or self.study(number) / f"1-ROIs-{sequence}"
        write_structures(folder / name, self.uid(number, sequence), structures)

    def patient(self, number):
        """A whole patient: both sequences, structure sets, plan and dose."""
        self.images(number)
        self.structures(number, {"*Skull": [box_contours()[0]], "TV": box_contours(), "Cochlea": [], "TV_2": []})
        self.images(number, "t2", places=range(3))
        self.structures(number, {"TV": box_contours()[:1]}, "t2")
        plan = self.study(number) / "1-plan" / "1-1.dcm"
        self.write_dicom(plan, np.zeros((2, 2), np.int16), Modality="RTPLAN")
        self.write_dicom(plan.with_name("1-2.dcm"), np.zeros((2, 2), np.int16), Modality="RTDOSE")


@pytest.fixture
def archive(tmp_path, write_dicom):
    return Archive(tmp_path / "download", write_dicom)


def run(root, tmp_path, **settings):
    source = recipe_source("vestibular_schwannoma", root, files_dir=tmp_path / "made.files", **settings)
    found, left = find(source)
    return found, {entry.where: entry.reason for entry in left}


def expected_mask():
    """(Z, Y, X); slices grow towards the head, rows to the back, columns to the left."""
    mask = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    mask[tuple(slice(*BOX[axis]) for axis in ("slices", "rows", "columns"))] = 1
    return mask


def test_a_structure_set_has_closed_contours_alone(archive):
    archive.patient(1)
    structures = read_structure_set(archive.study(1) / "1-ROIs-t1" / "1-1.dcm")
    assert structures.series == ("1.2.3.1.1",)
    counts = {structure.name: len(structure.contours) for structure in structures.structures}
    assert counts == {"*Skull": 1, "TV": 3, "Cochlea": 0, "TV_2": 0}
    assert structures.structure("TV").contours[0].shape == (4, 3)


def test_contours_become_a_mask_on_the_grid_of_their_series(archive, tmp_path):
    archive.patient(1)
    found, left = run(archive.root, tmp_path)
    (item,) = found
    assert (item.patient, item.split, item.size) == ("1", "training", (COLUMNS, ROWS, SLICES))
    assert item.path == archive.study(1) / "5-t1-mpr"
    image, mask = read_volume(item.path), read_volume(item.label)
    assert image.spacing == pytest.approx((1.5, 0.75, 0.5)) and mask.spacing == pytest.approx(image.spacing)
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    np.testing.assert_array_equal(mask.array, expected_mask())
    np.testing.assert_array_equal(mask.array > 0, image.array >= 1000)
    other = "VS-SEG-001/06-25-2000-NA-NA-12345/5-t2-mpr (series of 3 files)"
    assert left == {other: "a series of another sequence than the one that is set"}


def test_the_other_sequence(archive, tmp_path):
    archive.patient(1)
    found, _ = run(archive.root, tmp_path, sequence="t2")
    assert [item.size for item in found] == [(COLUMNS, ROWS, 3)]
    assert read_volume(found[0].label).array.sum() == 6 * 7
    with pytest.raises(InputError, match="sequence: must be one of t1, t2, got 'flair'"):
        run(archive.root, tmp_path, sequence="flair")


@pytest.mark.parametrize("name", ["first_validation", "first_testing"])
def test_numbers_of_patients_are_whole(archive, tmp_path, name):
    archive.patient(190)
    with pytest.raises(InputError, match=f"{name}: must be a whole number of at least 0, got 1.5"):
        run(archive.root, tmp_path, **{name: 1.5})
    with pytest.raises(InputError, match="structures: must be a list of texts"):
        run(archive.root, tmp_path, structures=None)


def test_two_series_of_one_folder_have_names_of_their_own(archive, tmp_path):
    for number in (7, 8):
        archive.images(number, folder=archive.root / "all" / str(number))
        archive.structures(number, {"TV": box_contours()})
        for file in (archive.root / "all" / str(number)).iterdir():
            file.rename(archive.root / "all" / f"{number}-{file.name}")
    found, _ = run(archive.root, tmp_path, structures="tv")
    assert [(item.name, item.patient) for item in found] == [("all/7-1-01", "7"), ("all/8-1-01", "8")]


def test_the_authors_renamed_folders_hold_everything_together(archive, tmp_path):
    """Structure set, plan and images share a folder: the images get a folder of links."""
    root = tmp_path / "renamed"
    folder = archive.images(7, folder=root / "vs_gk_7_t1")
    archive.structures(7, {"tv": box_contours()}, name="RTSS.dcm", folder=folder)
    (item,), left = run(root, tmp_path)
    assert not left and (item.patient, item.split) == ("7", "training")
    assert item.path.parent == tmp_path / "made.files" / "series" and "vs_gk" not in item.path.name
    np.testing.assert_array_equal(read_volume(item.label).array > 0, read_volume(item.path).array >= 1000)
    stamp = item.label.stat().st_mtime_ns
    (again,), _ = run(root, tmp_path)
    assert again == item and item.label.stat().st_mtime_ns == stamp


def write_contours(path, content):
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


def test_contours_as_json_stand_in_for_structure_sets(archive, tmp_path):
    archive.images(3)
    archive.images(4)
    points = [[point.tolist() for point in contour] for contour in box_contours()]
    content = [
        {"structure_name": "Cochlea", "LPS_contour_points": []},
        {"structure_name": "TV", "LPS_contour_points": points},
    ]
    write_contours(tmp_path / "download" / "contours" / "vs_gk_3_t1" / "contours.json", content)
    (item,), left = run(tmp_path / "download", tmp_path)
    assert item.patient == "3" and list(left.values()) == ["no structure sets refer to the series"]
    np.testing.assert_array_equal(read_volume(item.label).array, expected_mask())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"name": "TV"}, "is truncated, damaged or of an unsupported kind"),
        ([{"structure_name": "TV", "LPS_contour_points": [[1, 2, 3]]}], "contours must be lists of points x, y, z"),
    ],
)
def test_contours_of_another_form_are_listed(archive, tmp_path, content, why):
    archive.images(3)
    write_contours(tmp_path / "download" / "contours" / "vs_gk_3_t1" / "contours.json", content)
    found, left = run(tmp_path / "download", tmp_path)
    (reason,) = left.values()
    assert not found and reason.startswith("contours/vs_gk_3_t1/contours.json: ") and why in reason


@pytest.fixture
def damaged(archive):
    """Patients 1 (training), 190 and 230 are whole; the others are not."""
    for number in (1, 190, 230):
        archive.patient(number)
    tumor = {"TV": box_contours()}
    archive.images(2, places=[0, 1, 2, 4, 5])
    archive.structures(2, tumor)
    archive.images(3)
    archive.structures(3, {"Cochlea": box_contours(), "Men": box_contours()})
    folder = archive.images(4)
    (folder / "1-03 (1).dcm").write_bytes((folder / "1-03.dcm").read_bytes())
    archive.structures(4, {"Vol A": box_contours(), "Skull": box_contours()})
    archive.images(5)
    archive.images(6)
    archive.structures(6, {"TV": box_contours(), "AN": box_contours()})
    archive.images(8)
    archive.structures(8, {"one": box_contours(), "two": box_contours()})
    archive.images(9)
    archive.structures(9, {"TV": [[point + [0, 0, 99] for point in box_contours()[0]]]})
    archive.images(10)
    archive.structures(10, tumor)
    archive.structures(10, tumor, name="1-2.dcm")
    archive.images(12)
    archive.structures(12, tumor)
    cut = archive.study(12) / "1-ROIs-t1" / "1-1.dcm"
    cut.write_bytes(cut.read_bytes()[:-300])
    archive.structures(13, tumor)
    archive.structures(8, {}, name="copy.dcm")
    (archive.study(8) / "1-ROIs-t1" / "copy.dcm").write_bytes((archive.study(8) / "1-ROIs-t1" / "1-1.dcm").read_bytes())
    (folder / "._1-03.dcm").write_bytes(b"of macOS")
    (archive.root / "VS-SEG-011").mkdir()
    (archive.root / "VS-SEG-011" / "broken.dcm").write_bytes(b"not at all")
    (archive.root / "notes.docx").write_text("notes")
    (archive.root / "README.txt").write_text("known")
    return archive


def test_defects_are_listed(damaged, tmp_path):
    found, left = run(damaged.root.parent, tmp_path)
    assert sorted(int(item.patient) for item in found) == [1, 4, 190, 230]
    short = {
        where.replace("Vestibular-Schwannoma-SEG/", "").replace("/06-25-2000-NA-NA-12345", ""): why
        for where, why in left.items()
        if "t2" not in where
    }
    assert short.pop("VS-SEG-002/5-t1-mpr (series of 5 files)").startswith("1 missing slice(s) between")
    assert short.pop("VS-SEG-012/1-ROIs-t1/1-1.dcm").startswith("cannot be read, it is truncated")
    assert short.pop("VS-SEG-009/5-t1-mpr (series of 6 files)").startswith("contours: a contour lies at slice 68")
    assert short == {
        "VS-SEG-003/5-t1-mpr (series of 6 files)": "none of its 2 drawn structures is the tumor, or 0 may be "
        "(setting: structures)",
        "VS-SEG-004/5-t1-mpr/1-03.dcm": "a copy of another file of its series",
        "VS-SEG-005/5-t1-mpr (series of 6 files)": "no structure sets refer to the series",
        "VS-SEG-006/5-t1-mpr (series of 6 files)": "2 of its structures have a name of the tumor, one is expected",
        "VS-SEG-008/5-t1-mpr (series of 6 files)": "none of its 2 drawn structures is the tumor, or 2 may be "
        "(setting: structures)",
        "VS-SEG-008/1-ROIs-t1/copy.dcm": "a copy of another structure set",
        "VS-SEG-013/1-ROIs-t1/1-1.dcm": "a structure set of a series that is not there",
        "VS-SEG-010/5-t1-mpr (series of 6 files)": "2 structure sets refer to the series",
        "VS-SEG-012/5-t1-mpr (series of 6 files)": "no structure sets refer to the series",
        "VS-SEG-011/broken.dcm": "DICOM of another kind than MR and RTSTRUCT",
        "notes.docx": "no DICOM file",
    }


def test_from_the_tree_to_prepared_cases(damaged, tmp_path, secret):
    built = build_dataset_manifest(
        "vestibular_schwannoma", damaged.root.parent, tmp_path / "out" / "vs.json", workers=1
    )
    assert built.manifest.counts == {"training": 2, "validation": 1, "testing": 1}
    assert any("training has 2 items, published are 176 (-174)" in note for note in built.notes)
    problems = check_manifest(read_manifest(built.path))
    assert [problem for problem in problems if problem.severity == "error"] == []
    written = built.path.read_text() + built.path.with_name("vs.build.json").read_text()
    assert secret not in written and "Vol A" not in written
    assert len(json.loads(built.path.with_name("vs.build.json").read_text())["left_out"]) == len(built.left_out)
    store = prepare_cases(
        manifest=built.path, store_dir=tmp_path / "store", input_shape=(1, 4, 16, 16), workers=1, progress=False
    )
    case = store.case(0)
    assert len(store) == 2 and case.mask.shape == (SLICES, ROWS, COLUMNS)
    np.testing.assert_array_equal(case.mask, expected_mask())
    assert case.image[0][case.mask > 0].min() > case.image[0][case.mask == 0].max()


def write_converted(root, number, sequence="t1", mask=True, slices=SLICES):
    folder = root / f"vs_gk_{number}"
    folder.mkdir(parents=True)
    name = sequence.upper()
    volume = np.random.default_rng(number).integers(0, 500, (SLICES, ROWS, COLUMNS)).astype(np.int16)
    write_nifti(folder / f"vs_gk_{sequence}_ref{name}.nii.gz", volume, (1.5, 0.75, 0.5))
    if mask:
        write_nifti(folder / f"vs_gk_seg_ref{name}.nii.gz", expected_mask()[:slices], (1.5, 0.75, 0.5))
    return folder


def test_the_converted_layout(tmp_path):
    root = tmp_path / "nifti"
    for number in (5, 185, 240):
        write_converted(root, number)
    write_converted(root, 6, mask=False)
    write_converted(root, 7, slices=5)
    broken = write_converted(root, 8) / "vs_gk_t1_refT1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:50])
    (root / "vs_gk_5" / "vs_gk_struc2_Cochlea_refT1.nii.gz").write_bytes(b"")
    (root / "notes.docx").write_bytes(b"")
    found, left = run(root, tmp_path)
    assert [(item.patient, item.split) for item in found] == [
        ("185", "validation"),
        ("240", "testing"),
        ("5", "training"),
    ]
    assert found[2].label == root / "vs_gk_5" / "vs_gk_seg_refT1.nii.gz"
    assert left.pop("vs_gk_8/vs_gk_t1_refT1.nii.gz").startswith("cannot be read")
    assert left == {
        "vs_gk_6/vs_gk_t1_refT1.nii.gz": "no mask beside it",
        "vs_gk_7/vs_gk_t1_refT1.nii.gz": "its mask has (24, 20, 5) voxels, the image (24, 20, 6)",
        "vs_gk_5/vs_gk_struc2_Cochlea_refT1.nii.gz": "no image or mask of the sequence that is set",
        "notes.docx": "no NIfTI file",
    }


def test_converted_cases_end_to_end(tmp_path):
    for number in (5, 185, 240):
        write_converted(tmp_path / "nifti", number)
    built = build_dataset_manifest("vestibular_schwannoma", tmp_path / "nifti", tmp_path / "vs.json", workers=1)
    assert built.manifest.counts == {"training": 1, "validation": 1, "testing": 1}
    problems = check_manifest(read_manifest(built.path))
    assert [problem for problem in problems if problem.severity == "error"] == []


def test_another_layout_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "image.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds neither MR series in DICOM nor vs_gk_<sequence>_ref"):
        run(tmp_path / "data", tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        run(Path(tmp_path / "nowhere"), tmp_path)
