"""Indiana University radiographs: images with a table of views, images with XML reports, defects."""

from __future__ import annotations

import pytest

from medcoss_components.data.adapters.indiana_cxr import find
from medcoss_components.data.dataset_building import build_dataset_manifest
from medcoss_components.data.manifest import SPLITS, check_manifest, read_manifest
from medcoss_components.errors import InputError

from .miniatures import recipe_source, save_noise

HEIGHT, WIDTH = 20, 28
SECRET = "Heart size is normal"
REPORT = (
    '<eCitation><uId id="CXR{0}"/><MedlineCitation><Article><Abstract><AbstractText Label="FINDINGS">{1}'
    "</AbstractText></Abstract></Article></MedlineCitation>{2}</eCitation>"
)


def save(path, number):
    save_noise(path, number, (HEIGHT, WIDTH))


def write_report(root, number, names):
    path = root / "ecgen-radiology" / f"{number}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    images = "".join(f'<parentImage id="{name}"><caption>{SECRET}</caption></parentImage>' for name in names)
    path.write_text(REPORT.format(number, SECRET, images))


@pytest.fixture
def mirror(tmp_path):
    """Six reports with a frontal and a lateral image each, and the mirror's tables."""
    root = tmp_path / "mirror"
    lines = ["uid,filename,projection\n"]
    for report in range(1, 7):
        for number, view in ((3001, "Frontal"), (4001, "Lateral")):
            name = f"{report}_IM-{report:04d}-{number}.dcm.png"
            save(root / "images" / "images_normalized" / name, number + report)
            lines.append(f"{report},{name},{view}\n")
    (root / "indiana_projections.csv").write_text("".join(lines))
    (root / "indiana_reports.csv").write_text(f"uid,findings\n1,{SECRET}\n")
    return root


@pytest.fixture
def openi(tmp_path):
    """Three reports with two images each, as Open-i ships them."""
    root = tmp_path / "openi"
    for report in range(1, 4):
        names = [f"CXR{report}_1_IM-{report:04d}-{number}" for number in (1001, 2001)]
        for number, name in enumerate(names):
            save(root / "NLMCXR_png" / f"{name}.png", 10 * report + number)
        write_report(root, report, names)
    return root


def look(root, **settings):
    source = recipe_source("indiana_cxr", root, **settings)
    found, left = find(source)
    assert SECRET not in f"{found}{left}{source.notes}"
    return {item.path.name: item for item in found}, {entry.where: entry.reason for entry in left}, source.notes


class TestMirror:
    def test_reports_are_patients(self, mirror):
        found, left, notes = look(mirror.parent)  # the folder above works as well
        assert left == {} and notes == [] and len(found) == 12
        first = found["1_IM-0001-4001.dcm.png"]
        assert (first.patient, first.label, first.body_part) == ("1", None, "chest")
        assert (first.size, first.split) == ((WIDTH, HEIGHT), "")
        assert first.name == "images/images_normalized/1_IM-0001-4001.dcm"

    def test_views(self, mirror):
        found, left, _ = look(mirror, views=["Frontal"])
        assert len(found) == 6 and left == {"Lateral": "6 images, as views is set to Frontal"}
        with pytest.raises(InputError, match="views must be null or list some of Frontal, Lateral, got 'PA'"):
            look(mirror, views="PA")

    def test_defects_are_left_out(self, mirror):
        images = mirror / "images" / "images_normalized"
        save(images / "9_IM-0009-1001.dcm.png", 300)  # in no row
        save(mirror / "images" / "1_IM-0001-3001.dcm.png", 301)  # the same name
        save(images / "chest.png", 302)
        (images / "2_IM-0002-3001.dcm.png").write_bytes(b"no picture")
        (images / "3_IM-0003-3001.dcm.png").unlink()
        with open(mirror / "indiana_projections.csv", "a") as stream:
            stream.write("5,4_IM-0004-3001.dcm.png,Frontal\n")  # of two people
            stream.write("4,4_IM-0004-3001.dcm.png,Lateral\n")
            stream.write("4,../secret.png,Lateral\n")
        found, left, _ = look(mirror)
        assert len(found) == 10 and len(left) == 8
        assert left["9_IM-0009-1001.dcm.png"] == "named by no report"
        assert left["images/images_normalized/1_IM-0001-3001.dcm.png"].endswith("is the same image")
        assert left["images/images_normalized/chest.png"] == "not part of what is read"
        assert left["images/images_normalized/2_IM-0002-3001.dcm"].startswith("cannot be read")
        assert left["indiana_projections.csv row 5: 3_IM-0003-3001.dcm.png"] == "its image is not there"
        wrong = "it names no image that is called by the number of its report"
        assert left["indiana_projections.csv row 13"] == left["indiana_projections.csv row 15"] == wrong
        assert left["indiana_projections.csv row 14"] == "indiana_projections.csv row 7 names this image, too"

    def test_broken_tables(self, mirror):
        (mirror / "indiana_projections.csv").write_text("uid,filename,projection\n1,1_IM-0001-3001.dcm.png,Oblique\n")
        with pytest.raises(InputError, match="row 1: projection must be one of Frontal, Lateral"):
            look(mirror)
        (mirror / "indiana_projections.csv").write_text("uid,filename\n")
        with pytest.raises(InputError, match="no column projection"):
            look(mirror)

    def test_a_table_that_lies_too_deep_or_twice(self, mirror):
        (mirror / "a" / "b" / "c").mkdir(parents=True)
        (mirror / "indiana_projections.csv").rename(mirror / "a" / "b" / "c" / "indiana_projections.csv")
        with pytest.raises(InputError, match=r"holds no indiana_projections.csv, nor does a folder in it"):
            look(mirror)
        with pytest.raises(InputError, match=r"nowhere: no such folder"):
            look(mirror / "nowhere")


class TestOpenI:
    def test_reports_name_their_images(self, openi):
        found, left, notes = look(openi)
        assert left == {} and notes == [] and len(found) == 6
        assert found["CXR2_1_IM-0002-1001.png"].patient == "2"

    def test_without_reports(self, openi):
        for path in openi.glob("**/*.xml"):
            path.unlink()
        found, left, notes = look(openi)
        assert left == {} and {item.patient for item in found.values()} == {"1", "2", "3"}
        assert notes == ["Neither a table nor reports are there; the names of the images say the report of each."]

    def test_defects_are_left_out(self, openi):
        save(openi / "NLMCXR_png" / "CXR7_IM-0007-1001.png", 300)
        write_report(openi, 2, ["CXR2_1_IM-0002-1001", "CXR2_1_IM-0002-1001", "CXR3_1_IM-0003-1001", "CXR2_gone"])
        (openi / "ecgen-radiology" / "3.xml").write_text(f"<eCitation>{SECRET}")
        (openi / "ecgen-radiology" / "list.txt").write_text("x")
        found, left, _ = look(openi)
        assert sorted(found) == ["CXR1_1_IM-0001-1001.png", "CXR1_1_IM-0001-2001.png", "CXR2_1_IM-0002-1001.png"]
        assert left["ecgen-radiology/3.xml"].startswith("cannot be read")
        assert left["ecgen-radiology/2.xml"] == "it names no image that is called by the number of its report"
        assert left["ecgen-radiology/2.xml: CXR2_gone.png"] == "its image is not there"
        assert left["ecgen-radiology/list.txt"] == "not part of what is read"
        alone = {name for name, why in left.items() if why == "named by no report"}
        assert alone == {
            "CXR2_1_IM-0002-2001.png", "CXR3_1_IM-0003-1001.png", "CXR3_1_IM-0003-2001.png", "CXR7_IM-0007-1001.png"
        }  # fmt: skip

    def test_views_are_not_told(self, openi):
        with pytest.raises(InputError, match="views are told by indiana_projections.csv only"):
            look(openi, views="Frontal")

    def test_without_images(self, tmp_path):
        with pytest.raises(InputError, match="holds no radiograph. Unpack the images beside the reports"):
            look(tmp_path)


class TestWholeWay:
    def test_reports_stay_together(self, mirror, tmp_path):
        built = build_dataset_manifest("indiana-cxr", mirror, tmp_path / "out" / "indiana.json", workers=1)
        manifest = read_manifest(built.path)
        assert manifest.counts == {"training": 8, "validation": 2, "testing": 2}
        groups = {split: {item.group for item in manifest.items(split)} for split in SPLITS}
        assert [len(groups[split]) for split in SPLITS] == [4, 1, 1] and len(set().union(*groups.values())) == 6
        assert [problem for problem in check_manifest(manifest) if problem.severity == "error"] == []
        assert SECRET not in built.path.read_text() and {item.body_part for item in manifest.training} == {"chest"}
        assert any(note.startswith("all has 12 items, published are 7470") for note in built.notes)
