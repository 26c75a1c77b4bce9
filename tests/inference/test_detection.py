"""Boxes for files: in pixels of the file, in table, JSON and pictures; resuming, and cases that fail."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from medcoss_components.data.detection_inputs import DetectionTransform
from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError
from medcoss_components.inference.cases import InferenceCases, InferenceLoader
from medcoss_components.inference.detection import DetectionPredictor
from medcoss_components.inference.outputs import CasesFailedError

SHAPE = (3, 16, 24)
BRIGHT = 0.5


class BrightBox(torch.nn.Module):
    """Finds the smallest box around bright pixels of category 1, and one box of category 0 with a low score."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return {"classification": [self.scale * images[:, :1]], "box_regression": [images[:, :1]]}

    def detections(self, outputs, image_size):
        assert tuple(image_size) == SHAPE[1:]
        return [self._one(image[0]) for image in outputs["classification"][0]]

    def _one(self, image):
        rows, columns = torch.where(image > BRIGHT)
        corner = [0.0, 0.0, 4.0, 4.0]
        if not len(rows):
            return {"boxes": torch.tensor([corner]), "labels": torch.tensor([0]), "scores": torch.tensor([0.1])}
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return {
            "boxes": torch.tensor([corner, [float(side) for side in box]]),
            "labels": torch.tensor([0, 1]),
            "scores": torch.tensor([0.1, 0.8]),
        }


@pytest.fixture
def pictures(tmp_path):
    """``a``: 32 x 40 with a bright block; ``b``: nothing bright."""
    folder = tmp_path / "in"
    folder.mkdir()
    picture = np.full((32, 40), 20, np.uint8)
    picture[0, 0] = 0
    write_picture(folder / "b.png", picture)
    picture[8:20, 10:30] = 255
    write_picture(folder / "a.png", picture)
    return folder


@pytest.fixture
def detector(tmp_path):
    """``detector(input, **options of the predictor)`` that writes to ``tmp_path / "out"``."""

    def build(path, *, network=None, preparation=None, kind="detection", **options):
        cases = InferenceCases(
            input=path,
            modality="xray",
            input_shape=SHAPE,
            kind=kind,
            preparation={"percentiles": None} | (preparation or {}),
        )
        settings = {
            "output_dir": tmp_path / "out",
            "precision": "float32",
            "preprocessing": DetectionTransform(modality="xray", input_shape=SHAPE),
            "categories": ["other", "block"],
        } | options
        return DetectionPredictor(
            device="cpu",
            val_data_loader=InferenceLoader(dataset=cases),
            network=network or BrightBox(),
            **settings,
        )

    return build


def lines(folder):
    with open(folder / "out" / "predictions.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def sides(line):
    return [float(line[name]) for name in ("left", "top", "right", "bottom")]


class TestOutputs:
    def test_boxes_in_pixels_of_the_file(self, pictures, detector, tmp_path):
        """32 x 40 pixels stand as 16 x 20 in the middle of 16 x 24: prepared pixels are two of the file."""
        detector(pictures).run()
        found, empty = lines(tmp_path)
        assert list(found) == ["id", "source", "category", "score", "left", "top", "right", "bottom"]
        assert (found["source"], found["category"], float(found["score"])) == ("a.png", "block", 0.8)
        assert sides(found) == [10, 8, 30, 20]
        assert (empty["source"], empty["category"], empty["left"]) == ("b.png", "", "")

    def test_json(self, pictures, detector, tmp_path):
        predictor = detector(pictures)
        predictor.run()
        document = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert (document["task"], document["categories"], document["threshold"]) == (
            "detection", ["other", "block"], 0.5
        )  # fmt: skip
        first, second = document["cases"]
        assert (first["width"], first["height"], len(first["boxes"]), second["boxes"]) == (40, 32, 1, [])
        (entry,) = json.loads((tmp_path / "out" / "coco_results.json").read_text())
        assert entry == {"image_id": first["id"], "category_id": 2, "bbox": [10, 8, 20, 12], "score": 0.8}

    def test_pictures_have_the_names_of_the_others(self, pictures, detector, tmp_path):
        predictor = detector(pictures)
        predictor.run()
        files = sorted((tmp_path / "out" / "overlays").iterdir())
        assert [path.stem for path in files] == sorted(predictor.rows)
        assert not any(path.stem == "a" for path in files)
        assert all(len(np.unique(np.asarray(Image.open(path).convert("RGB")))) > 20 for path in files)
        assert not (tmp_path / "out" / "masks").exists()

    def test_no_pictures(self, pictures, detector, tmp_path):
        detector(pictures, overlay=False).run()
        assert not (tmp_path / "out" / "overlays").exists()

    def test_threshold(self, pictures, detector, tmp_path):
        """The corner of the prepared picture: its left half is filled margin, which is nowhere in the file."""
        detector(pictures, threshold=0.05).run()
        first, second, third = lines(tmp_path)
        assert [line["category"] for line in (first, second, third)] == ["block", "other", "other"]
        assert sides(second) == sides(third) == [0, 0, 4, 8]

    def test_what_lies_in_the_margin_is_left_out(self, pictures, detector, tmp_path):
        class Margin(BrightBox):
            def _one(self, image):
                return {"boxes": torch.tensor([[0, 0, 2.0, 9]]), "labels": torch.tensor([0]), "scores": torch.ones(1)}

        detector(pictures, network=Margin()).run()
        assert [line["category"] for line in lines(tmp_path)] == ["", ""]

    def test_cut_pictures(self, pictures, detector, tmp_path):
        detector(pictures, preparation={"fit": "crop"}).run()
        assert sides(lines(tmp_path)[0]) == pytest.approx([10, 8, 30, 20], abs=2)

    def test_without_source_names(self, pictures, detector, tmp_path):
        detector(pictures, source_name=False).run()
        assert list(lines(tmp_path)[0])[:2] == ["id", "category"]

    def test_dicom_counts_the_pixels_of_the_file(self, tmp_path, detector, dicom_file):
        pixels = np.full((32, 40), 5000, np.uint16)
        pixels[0, 0], pixels[8:20, 10:30] = 0, 65535
        (tmp_path / "in").mkdir()
        dicom_file[0](tmp_path / "in" / "a.dcm", pixels, Modality="DX", PixelSpacing=[0.5, 0.5])
        detector(tmp_path / "in").run()
        (line,) = lines(tmp_path)
        assert sides(line) == [10, 8, 30, 20]
        assert dicom_file[1] not in (tmp_path / "out" / "predictions.json").read_text()

    def test_pixels_that_are_not_square(self, tmp_path, detector, dicom_file):
        """Rows twice as far apart as columns: 16 x 40 pixels stand as 16 x 20."""
        pixels = np.full((16, 40), 5000, np.uint16)
        pixels[0, 0], pixels[4:10, 10:30] = 0, 65535
        (tmp_path / "in").mkdir()
        dicom_file[0](tmp_path / "in" / "a.dcm", pixels, Modality="DX", PixelSpacing=[1.0, 0.5])
        detector(tmp_path / "in").run()
        assert sides(lines(tmp_path)[0]) == [10, 4, 30, 10]


class TestRuns:
    def test_goes_on_where_it_stopped(self, pictures, detector, tmp_path):
        detector(pictures).run()
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
        network = BrightBox()
        detector(pictures, network=network).run()
        assert network.calls == 0
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before

    def test_other_settings_need_another_folder(self, pictures, detector):
        detector(pictures).run()
        with pytest.raises(InputError, match="threshold"):
            detector(pictures, threshold=0.3).run()

    def test_what_the_head_does_decides_the_boxes_too(self, pictures, detector):
        network = BrightBox()
        network.head = SimpleNamespace(nms_threshold=0.5)
        detector(pictures, network=network).run()
        network.head.nms_threshold = 0.2
        with pytest.raises(InputError, match="nms_threshold"):
            detector(pictures, network=network).run()

    def test_a_damaged_file_fails_alone(self, pictures, detector, tmp_path):
        (pictures / "c.png").write_bytes(b"no picture")
        with pytest.raises(CasesFailedError, match="1 of 3 cases failed"):
            detector(pictures).run()
        assert [line["source"] for line in lines(tmp_path)] == ["a.png", "b.png"]

    @pytest.mark.parametrize(
        ("label", "score", "message"),
        [(2, 0.9, "2 names for a network that found number 2"), (0, float("nan"), None)],
    )
    def test_networks_that_do_not_fit(self, pictures, detector, label, score, message):
        class Other(BrightBox):
            def _one(self, image):
                boxes = torch.tensor([[0, 0, 9.0, 9]])
                return {"boxes": boxes, "labels": torch.tensor([label]), "scores": torch.tensor([score])}

        predictor = detector(pictures, network=Other())
        if message is None:
            predictor.run()
            assert all(row["boxes"] == [] for row in predictor.rows.values())
            return
        with pytest.raises(CasesFailedError, match=message):
            predictor.run()

    def test_outputs_that_are_not_finite(self, pictures, detector):
        network = BrightBox()
        torch.nn.init.constant_(network.scale, float("nan"))
        with pytest.raises(CasesFailedError, match="not finite"):
            detector(pictures, network=network).run()

    def test_cases_of_another_kind_that_slip_in(self, pictures, detector):
        predictor = detector(pictures)
        case = predictor.cases[0]
        object.__setattr__(case, "plane", None)
        with pytest.raises(InputError, match="not prepared for detection"):
            list(predictor.predict([case]))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kind": "classification"}, "must be of kind detection, are classification"),
            ({"threshold": 1}, r"threshold=1\.0"),
            ({"categories": ["a", "a"]}, "different names"),
            ({"preparation": {"tile": [8, 8]}}, "tile"),
        ],
    )
    def test_wrong(self, pictures, detector, options, message):
        with pytest.raises(InputError, match=message):
            detector(pictures, **options).run()


def test_volumes_have_no_boxes(tmp_path):
    with pytest.raises(InputError, match="boxes are of 2D pictures"):
        (tmp_path / "a.nii.gz").write_bytes(b"")
        InferenceCases(input=tmp_path, modality="ct", kind="detection")
