"""Both sides of the manifest rows see the same files; the rows run on tiny ones."""

from __future__ import annotations

import manifest_building
import pytest

from medcoss_components.data.adapters.own_dicom import find_dicom
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.readers import read_volume


@pytest.mark.parametrize("compressed", [False, True])
def test_both_sides_find_the_same_series(tmp_path, compressed):
    manifest_building.write_tree(tmp_path / "tree", studies=2, slices=9, side=16, compressed=compressed)
    series = manifest_building.index_with_pixels(tmp_path / "tree")
    found, left = find_dicom(tmp_path / "tree", modality=get_modality("ct"))
    assert not left
    assert sorted(tuple(path for _, path in files) for files in series.values()) == sorted(item.files for item in found)
    volume = read_volume(found[0].path)
    assert volume.array.shape == (9, 16, 16) and volume.spacing[0] == 2
    assert (volume.array[3] == manifest_building.smooth_slice(16)).all()


@pytest.mark.parametrize("name", list(manifest_building.ROWS))
def test_rows_run(options, monkeypatch, name):
    monkeypatch.setattr(manifest_building, "TREE", {"quick": (2, 8)})
    monkeypatch.setattr(manifest_building, "TEXTS", {"quick": 60})
    monkeypatch.setattr(manifest_building, "SIDE", 16)
    row = manifest_building.ROWS[name](options)
    assert row.name == name and len(row.ours) == 1 and row.ours[0] > 0
