import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from medcoss_components.data import case_building
from medcoss_components.data.manifest import read_manifest
from medcoss_components.data.store_sizes import size_text
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.doctor import data
from medcoss_components.doctor.data import DataCase, check_data
from medcoss_components.doctor.findings import ERROR, OK, WARNING
from medcoss_components.zoo.bundle_stores import prepare_for_bundle

BUNDLES = Path(__file__).parents[2] / "bundles"
LIVER = BUNDLES / "liver_tumor_ct_segmentation"
SMALL = {"input_shape": [1, 8, 16, 16], "preparation": {"spacing": None}, "preparation_workers": 1}


@pytest.fixture
def volumes(tmp_path):
    regions = {"liver": [1], "tumor": [2]}
    return synthetic_manifest(
        tmp_path / "data", "ct", count=3, validation=0, testing=1, shape=(12, 20, 20), regions=regions
    )


@pytest.fixture(autouse=True)
def no_positions(monkeypatch):
    monkeypatch.setattr(case_building, "foreground_positions", lambda mask, seed: np.empty((0, 4), np.int32))


def found_by_name(case):
    return {found.what: found for found in check_data(case, {})}


def needed(*cases):
    """Bytes needed by folder."""
    rooms = {}
    for case in cases:
        assert list(check_data(case, rooms))
    return rooms


def liver_case(path, tmp_path, **settings):
    return DataCase(path, bundle=LIVER, store_dir=tmp_path / "stores", settings=tuple((SMALL | settings).items()))


class TestManifest:
    def test_good_with_its_bundle(self, volumes, tmp_path):
        found = found_by_name(liver_case(volumes, tmp_path))
        assert {entry.status for entry in found.values()} == {OK}
        assert found["manifest"].value == "synthetic-ct 0, ct: 3 training, 0 validation, 1 testing"
        assert found["groups"].value.startswith("4 ")
        size = 12 * 20 * 20 * 3 + 3 * 128  # image, mask and the headers of three files
        assert found["store of training"].value == f"3 items, about {size_text(3 * size)} to prepare"
        assert needed(liver_case(volumes, tmp_path)) == {tmp_path / "stores": 4 * size}
        assert not (tmp_path / "stores").exists()

    def test_prepared_already(self, volumes, tmp_path):
        prepare_for_bundle(LIVER, volumes, tmp_path / "stores", SMALL)
        found = found_by_name(liver_case(volumes, tmp_path))
        assert found["store of training"].value.startswith("is prepared: ")
        assert needed(liver_case(volumes, tmp_path)) == {}

    def test_unreadable(self, tmp_path):
        (tmp_path / "m.json").write_text("{")
        (found,) = check_data(DataCase(tmp_path / "m.json"), {})
        assert found.status == ERROR and "m.json" in found.value

    def test_of_another_modality(self, tmp_path):
        path = synthetic_manifest(tmp_path / "data", "xray", count=2)
        found = found_by_name(liver_case(path, tmp_path))
        assert found["bundle"].status == ERROR and "holds xray, got ct" in found["bundle"].value

    def test_stores_of_texts_are_not_looked_for(self, tmp_path):
        found = found_by_name(DataCase(synthetic_manifest(tmp_path, "report", count=4), store_dir=tmp_path))
        assert found["store of training"].value.endswith("to prepare, if it is not there already")
        assert found["items"].advice == ""

    def test_without_a_bundle(self, volumes, tmp_path):
        found = found_by_name(DataCase(volumes, store_dir=tmp_path))
        assert "bundle" not in found and found["store of training"].value.startswith("3 items")
        assert list(needed(DataCase(volumes, store_dir=tmp_path))) == [tmp_path] and needed(DataCase(volumes)) == {}

    def test_the_bundles_own_store_folder(self, volumes, tmp_path):
        copied = tmp_path / "liver"
        shutil.copytree(LIVER / "configs", copied / "configs")
        found = found_by_name(DataCase(volumes, bundle=copied, settings=tuple(SMALL.items())))
        assert found["store folder"].value.startswith(f"{copied / 'store'} (will be made): ")
        assert found["bundle"].value == "liver takes this manifest"

    def test_classes_where_masks_are_needed(self, tmp_path):
        path = synthetic_manifest(tmp_path / "data", "ct", count=2, shape=(12, 20, 20))
        found = found_by_name(liver_case(path, tmp_path))["store of training"]
        assert found.status == ERROR and found.value.endswith("the item's label is no path of a mask file")

    @pytest.mark.parametrize(("count", "status"), [(2, ERROR), (6, WARNING)])
    def test_masks_without_a_region(self, tmp_path, count, status):
        path = synthetic_manifest(tmp_path / "d", "ct", count=count, shape=(12, 20, 20), regions={"liver": [1]})
        found = found_by_name(liver_case(path, tmp_path))["regions"]
        tried = min(count, 3)  # of six some are not looked at, so that one may have it
        assert (found.status, found.value) == (status, f"no voxel of tumor in {tried} of {count} masks; they hold [1]")

    def test_defects(self, tmp_path):
        path = synthetic_manifest(tmp_path / "data", "xray", count=4, defects=("missing_file", "group_across_splits"))
        found = found_by_name(DataCase(path, store_dir=tmp_path))
        assert found["missing-file"].status == found["group-across-splits"].status == ERROR and "items" not in found

    def test_many_defects_are_summed_up(self, tmp_path):
        path = synthetic_manifest(tmp_path / "data", "xray", count=12, validation=2)
        for item in read_manifest(path).training:
            item.image.unlink()
        found = list(check_data(DataCase(path, store_dir=tmp_path), {}))
        rest = next(entry for entry in found if entry.what == "more remarks")
        assert (rest.status, rest.value) == (ERROR, f"{12 - data.SHOWN} more")
        assert sum(entry.what == "missing-file" for entry in found) == data.SHOWN

    def test_warnings_stay_warnings(self, tmp_path, monkeypatch):
        from medcoss_components.data.manifest_check import Problem

        many = [Problem("warning", "rule", "where", "message")] * (data.SHOWN + 1)
        monkeypatch.setattr(data, "check_manifest", lambda manifest, **_: [*many, Problem("info", "counts", "", "")])
        path = synthetic_manifest(tmp_path / "data", "xray", count=2)
        found = found_by_name(DataCase(path, store_dir=tmp_path))
        assert found["rule"].status == found["more remarks"].status == WARNING
        assert found["more remarks"].value == "1 more"


class TestRoom:
    def test_samples_stand_twice_while_they_are_joined(self, tmp_path):
        path = synthetic_manifest(tmp_path / "data", "xray", count=3, validation=1)
        store = 224 * 224  # bytes of a stored sample, one grey channel
        case = DataCase(path, store_dir=tmp_path)
        assert needed(case) == {tmp_path: (4 + 3) * store}
        assert needed(case, case) == {tmp_path: 2 * (4 + 3) * store}  # manifests add up

    def test_what_an_interrupted_preparation_wrote_is_not_needed_again(self, tmp_path):
        path = synthetic_manifest(tmp_path / "data", "xray", count=3, validation=1)
        case = DataCase(path, store_dir=tmp_path)
        (_, whole), *_ = needed(case).items()
        (training, _) = data._needs(case, read_manifest(path))
        training.plan.work.mkdir()
        (training.plan.work / "part-000000.bin").write_bytes(bytes(1000))
        assert needed(case) == {tmp_path: whole - 1000}

    @pytest.mark.parametrize(("needed", "status"), [(9, OK), (10, ERROR)])
    def test_too_little(self, tmp_path, monkeypatch, needed, status):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(data.shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 9, 9))
        (found,) = data.check_room({tmp_path / "stores": needed})
        assert found.status == status and found.value.endswith(f"{needed} B needed in {tmp_path}/stores, 9 B free")

    @pytest.mark.parametrize(("damaged", "status"), [(1, WARNING), (3, ERROR)])
    def test_items_that_cannot_be_prepared(self, volumes, tmp_path, damaged, status):
        for item in read_manifest(volumes).training[:damaged]:
            item.image.write_bytes(b"no volume")
        found = found_by_name(liver_case(volumes, tmp_path))["store of training"]
        assert found.status == status and f"{damaged} of 3 items that were tried" in found.value
