"""Boxes of one's own pictures in three forms, into a manifest."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medcoss_components.data.box_labels import box_form, read_boxes
from medcoss_components.data.manifest_building import OwnData, build_manifest
from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError

BOX = {"box": [4, 5, 10, 12], "category": "nodule"}


@pytest.fixture
def films(tmp_path):
    """Six pictures of 20 x 24 (H x W)."""
    (tmp_path / "films").mkdir()
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 255, (20, 24)).astype(np.uint8)
        write_picture(tmp_path / "films" / f"{number}.png", values)
    return tmp_path / "films"


@pytest.fixture
def write(tmp_path):
    def save(text, name="boxes.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path

    return save


def coco(**changes):
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(6)],
        "annotations": [{"image_id": 0, "category_id": 3, "bbox": [4, 5, 6, 7]}],
        "categories": [{"id": 3, "name": "nodule"}],
    }
    return content | changes


def voc(*sides, name="nodule"):
    tags = "".join(f"<{tag}>{side}</{tag}>" for tag, side in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True))
    return f"<annotation><object><name>{name}</name><bndbox>{tags}</bndbox></object></annotation>"


def build(root, labels, **options):
    data = OwnData(root=root, kind="images", modality="xray", labels=labels, split=(60, 20, 20), **options)
    return build_manifest(data, root.parent / "manifest.json")


def labels_of(built):
    """Label of each picture by the number that is its name, in the manifest's links or files."""
    items = [item for split in ("training", "validation", "testing") for item in built.manifest.items(split)]
    return {int(item.image.stem): item.label for item in items}


class TestForms:
    """The same box: pixels 4 to 9 across and 5 to 11 down."""

    def test_coco(self, films, write):
        built = build(films, write(coco(), "boxes.json"))
        assert labels_of(built) == {0: [BOX]} | {number: [] for number in range(1, 6)}
        assert any(note.startswith("Boxes are read as COCO: bbox is x, y, width, height") for note in built.notes)

    def test_pascal_voc(self, films, write):
        write(voc(5, 6, 10, 12), "xml/0.xml")
        write(voc(0, 1, 24, 20), "xml/2.xml")
        folder = write("<annotation><filename>old name.jpg</filename></annotation>", "xml/1.xml").parent
        built = build(films, folder)
        assert labels_of(built) == {0: [BOX], 1: [], 2: [{"box": [-1, 0, 24, 20], "category": "nodule"}]}
        assert {entry.reason for entry in built.left_out} == {"no row in the table"}

    @pytest.mark.parametrize(
        "text",
        [
            "file,left,top,right,bottom,category\n0.png,4,5,10,12,nodule\n1.png,,,,,\n",
            "file;x;y;width;height;category\n0.png;4;5;6;7;nodule\n1.png;;;;;\n",
            "file,x,y,width,height,label\n0,4.0,5,6,7, nodule \n1,,,,,\n",
        ],
    )
    def test_tables(self, films, write, text):
        assert labels_of(build(films, write(text), seed=1, unlabelled=True)) == {
            **{0: [BOX], 1: []},
            **dict.fromkeys(range(2, 6)),
        }

    def test_several_boxes_patients_and_splits(self, films, write):
        lines = ["file,patient,left,top,right,bottom,category,part", "0.png,p,0,0,1.5,1,cyst,train"]
        lines += ["0.png,p,4,5,10,12,nodule,train", "1.png,p,,,,,,train", "2.png,q,1,1,2,2,cyst,test"]
        built = build(films, write("\n".join(lines)), split_column="part")
        assert [item.body_part for item in built.manifest.training] == [None, None]
        assert [len(item.label) for item in built.manifest.training] == [2, 0] and built.manifest.counts["testing"] == 1
        assert built.manifest.training[0].label[0] == {"box": [0, 0, 1.5, 1], "category": "cyst"}
        assert built.manifest.training[0].group == built.manifest.training[1].group

    def test_body_parts(self, films, write):
        lines = ["file,x,y,width,height,category,body_part", "0,4,5,6,7,nodule,Left HAND", "0,1,1,2,2,cyst,left hand"]
        lines += ["1,,,,,,FOOT", "2,,,,,,"]
        built = build(films, write("\n".join(lines)))
        items = [item for split in ("training", "validation", "testing") for item in built.manifest.items(split)]
        assert {int(item.image.stem): item.body_part for item in items} == {0: "left hand", 1: "foot", 2: None}

    def test_what_lies_outside_is_left_out(self, films, write):
        annotations = [{"image_id": number, "category_id": 3, "bbox": [4, 5, 6 + 20 * number, 7]} for number in (0, 1)]
        built = build(films, write(coco(annotations=annotations), "boxes.json"))
        assert 1 not in labels_of(built)
        assert [entry.reason for entry in built.left_out] == [
            "box 0 [4, 5, 30, 12]: outside the picture of 24 x 20 pixels"
        ]

    def test_a_table_of_classes_is_none(self, write):
        assert box_form(write("file,label\na,b\n")) == ""


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("file,left,top,right,bottom\n0,1,1,2,2\n", "no column 'category'; found 'file'"),
            ("file,left,top,right,bottom,category\n0,1,1,2,\n", "line 2: a box needs four finite numbers"),
            ("file,x,y,width,height,category\n0,1,1,2,Smith,a\n", "line 2: a box needs four finite numbers"),
            ("file,x,y,width,height,category\n0,1,1,nan,2,a\n", "line 2: a box needs four finite numbers"),
            (
                "file,x,y,width,height,category\n0,1,1,0,2,a\n",
                r"line 2: left must be below right.*\[1.0, 1.0, 1.0, 3.0\]",
            ),
            ("file,x,y,width,height,category\n0,1,1,2,2,\n", "line 2: the box has no category"),
            ("file,x,y,width,height,category\n0,0.1,0.2,0.3,0.5,a\n", "they look like shares of the picture"),
            ("file,left,top,right,bottom,category,s\n0,1,1,2,2,a,else\n", "line 2: split must be one of .* got 'else'"),
            ("file,x,y,width,height,category,body_part\n0,1,1,2,2,a,Mr. Smith\n", "line 2: body_part must be words"),
            (
                "file,patient,left,top,right,bottom,category\n0,p,1,1,2,2,a\n,,,,,,\n0,q,1,1,2,2,a\n",
                "lines 2 and 4 say different things about the same key",
            ),
        ],
    )
    def test_tables(self, write, text, message):
        path = write(text)
        with pytest.raises(InputError, match=message) as told:
            read_boxes(path, split_column="s" if ",s\n" in text else None)
        assert str(path) in str(told.value) and "Smith" not in str(told.value)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"annotations": [{"image_id": 9, "category_id": 3, "bbox": [1, 1, 2, 2]}]}, "annotation 0: its image_id"),
            ({"annotations": [{"image_id": 0, "category_id": 4, "bbox": [1, 1, 2, 2]}]}, "the box has no category"),
            ({"annotations": [{"image_id": 0, "category_id": 3, "bbox": [1, 1, 2]}]}, "boxes.json"),
            ({"annotations": [{"image_id": 0, "category_id": 3}]}, "boxes.json"),
            (
                {"images": [{"id": 0, "file_name": "a"}, {"id": 1, "file_name": "a"}]},
                "1 file names stand more than once",
            ),
        ],
    )
    def test_coco(self, write, changes, message):
        with pytest.raises(InputError, match=message):
            read_boxes(write(coco(**changes), "boxes.json"))

    def test_other_files(self, write, tmp_path):
        with pytest.raises(InputError, match="no COCO file of boxes; it needs images, annotations and categories"):
            read_boxes(write({"images": []}, "boxes.json"))
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="holds no .xml file"):
            read_boxes(tmp_path / "empty")
        with pytest.raises(InputError, match="0.xml: object 0: a box needs four finite numbers"):
            read_boxes(write(voc(1, 2, 3, "x"), "xml/0.xml").parent)
        with pytest.raises(InputError, match="0.xml: no Pascal VOC file"):
            read_boxes(write("<page/>", "xml/0.xml").parent)
        with pytest.raises(InputError, match="0.xml"):
            read_boxes(write("<annotation>", "xml/0.xml").parent)

    def test_volumes_have_no_boxes(self, tmp_path, write):
        from medcoss_components.data.writers import write_nifti

        for number in range(3):
            volume = np.full((4, 16, 16), number, np.int16)
            (tmp_path / "ct").mkdir(exist_ok=True)
            write_nifti(tmp_path / "ct" / f"{number}.nii.gz", volume, (1, 1, 1))
        data = OwnData(root=tmp_path / "ct", kind="volumes", modality="ct", labels=write(coco(), "boxes.json"))
        with pytest.raises(InputError, match="holds boxes, which are of pictures; ct has none"):
            build_manifest(data, tmp_path / "manifest.json")
