"""Pictures with boxes that are made by the package."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.synthetic_detection import synthetic_detection, tight_box
from medcoss_components.errors import InputError


def test_a_manifest_in_order(tmp_path):
    path = synthetic_detection(tmp_path, count=9, testing=3, body_parts=["chest", "hand"], preparation={"fit": "pad"})
    manifest = read_manifest(path)
    assert manifest.counts == {"training": 9, "validation": 3, "testing": 3} and manifest.preparation == {"fit": "pad"}
    assert [item.body_part for item in manifest.training[:3]] == ["chest", "hand", "chest"]
    assert [bool(item.label) for item in manifest.training] == [True, True, False] * 3
    for split in ("training", "validation"):
        assert {entry["category"] for item in manifest.items(split) for entry in item.label} == {"small", "large"}
    assert {len(item.label) for item in manifest.training} == {0, 1, 2}
    assert [problem for problem in check_manifest(manifest) if problem.severity != "info"] == []


def test_boxes_lie_around_what_is_bright(tmp_path):
    manifest = read_manifest(synthetic_detection(tmp_path, count=6, categories=["nodule"]))
    for item in manifest.training:
        if len(item.label) == 1:
            picture = np.asarray(Image.open(item.image))
            assert tight_box(picture > 0.52 * 65535) == item.label[0]["box"]


def test_equal_arguments_write_equal_content(tmp_path):
    paths = [synthetic_detection(tmp_path / name, count=3, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert paths[0].read_text() == paths[1].read_text() != paths[2].read_text()
    files = [(path.parent / "files" / "training-000.png").read_bytes() for path in paths]
    assert files[0] == files[1] != files[2]


def test_colour(tmp_path):
    path = synthetic_detection(tmp_path, "pathology", count=1, validation=0)
    assert Image.open(path.parent / "files" / "training-000.png").mode == "RGB"


def test_volumes_are_refused(tmp_path):
    with pytest.raises(InputError, match="modality ct: boxes are of 2D pictures"):
        synthetic_detection(tmp_path, "ct")
