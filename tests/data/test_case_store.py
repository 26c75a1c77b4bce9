import json
import pickle
from collections import namedtuple

import numpy as np
import pytest

from medcoss_components.data import build_frame, case_building
from medcoss_components.data.case_building import foreground_positions
from medcoss_components.data.case_store import CaseStore, cut_window, prepare_cases
from medcoss_components.data.manifest import read_manifest
from medcoss_components.data.masks import read_mask
from medcoss_components.data.readers import read_volume
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.errors import InputError
from medcoss_components.files import read_json

SHAPE = (10, 14, 18)
INPUT = (1, 6, 16, 8)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Three CT volumes with masks of two values."""
    folder = tmp_path_factory.mktemp("volumes")
    return synthetic_manifest(folder, "ct", count=3, validation=1, shape=SHAPE, regions={"core": [1, 2]})


@pytest.fixture
def copied(volumes, tmp_path):
    """A copy of the volumes that a test may damage."""
    import shutil

    shutil.copytree(volumes.parent, tmp_path / "data")
    return tmp_path / "data" / "manifest.json"


@pytest.fixture
def prepare(tmp_path):
    def build(manifest, **options):
        options = {"input_shape": INPUT, "workers": 1, "store_dir": tmp_path / "stores"} | options
        return prepare_cases(manifest=manifest, **options)

    return build


class TestPrepare:
    def test_content_equals_the_files(self, volumes, prepare):
        store, manifest = prepare(volumes), read_manifest(volumes)
        assert store.ids == [item.id for item in manifest.training]
        assert store.groups == [item.group for item in manifest.training]
        assert (len(store), store.manifest_hash, store.modality.input_shape) == (3, manifest.hash, INPUT)
        for row, item in enumerate(manifest.training):
            case = store.case(row)
            assert (case.id, case.image_path, case.mask_path) == (item.id, item.image, manifest.root / item.label)
            image = np.clip(read_volume(item.image).array, -1024, 1024)
            assert np.array_equal(case.geometry.crop(case.image)[0], image)
            assert np.array_equal(case.geometry.crop(case.mask), read_mask(case.mask_path, 3))
            assert case.geometry.shape == case.image.shape[1:] == (10, 16, 18)
            counts = np.bincount(case.mask.ravel())
            assert store.values(row) == {value: count for value, count in enumerate(counts) if value and count}
        assert store[-1].id == store.ids[2]
        assert repr(store).endswith("3 cases of ct)")

    def test_pictures(self, tmp_path, prepare):
        manifest = synthetic_manifest(tmp_path / "films", "xray", count=2, shape=(40, 30), regions={"spot": "any"})
        store = prepare(manifest, input_shape=(3, 16, 16), preparation={"size": [20, 24]})
        assert [store.case(row).image.shape for row in range(2)] == [(1, 20, 24)] * 2
        assert store.case(0).mask.max() == 1
        assert store.case(0).geometry.unit == "pixel"

    def test_found_again_and_made_anew(self, volumes, prepare, monkeypatch):
        first = prepare(volumes)
        monkeypatch.setattr(case_building, "store_case", None)
        assert prepare(volumes).path == first.path
        monkeypatch.undo()
        others = [prepare(volumes, preparation={"spacing": [2.5, 2, 2]}), prepare(volumes, input_shape=(1, 6, 8, 8))]
        others.append(prepare(volumes, split="validation"))
        assert len({store.key for store in (first, *others)}) == 4
        assert others[0].geometry(0).resampled_shape == (10, 7, 9)

    def test_settings_for_cutting_samples_are_passed_over(self, copied, prepare):
        document = json.loads(copied.read_text())
        document["preparation"] = {"slices_stride": 3, "spacing": [2.5, 2, 2]}
        copied.write_text(json.dumps(document))
        assert prepare(copied).index["preparation"] == {"spacing": [2.5, 2, 2], "percentiles": None}
        with pytest.raises(InputError, match="'slices_stride' is no setting"):
            prepare(copied, preparation={"slices_stride": 3})

    def test_it_pickles_as_its_path(self, volumes, prepare):
        store = prepare(volumes)
        again = pickle.loads(pickle.dumps(store))
        assert (again.key, again.root) == (store.key, store.root)

    @pytest.mark.slow
    def test_two_processes_give_the_same(self, volumes, prepare, tmp_path):
        one, two = prepare(volumes), prepare(volumes, workers=2, store_dir=tmp_path / "other")
        for file in one.path.iterdir():
            assert file.read_bytes() == (two.path / file.name).read_bytes()

    def test_an_interrupted_run_goes_on(self, volumes, prepare, monkeypatch):
        work = case_building.store_case
        seen = []

        def stop_at_second(job):
            seen.append(job.number)
            if len(seen) == 2:
                raise KeyboardInterrupt
            return work(job)

        monkeypatch.setattr(case_building, "store_case", stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            prepare(volumes)
        assert len(prepare(volumes)) == 3
        assert seen == [0, 1, 1, 2]


class TestBadCases:
    def test_left_out_and_listed(self, copied, prepare, tmp_path):
        manifest = read_manifest(copied)
        manifest.training[0].image.unlink()
        (manifest.root / manifest.training[1].label).write_bytes(b"no volume")
        store = prepare(copied, max_bad_share=0.7)
        assert store.ids == ["training-002"]
        assert [entry["id"] for entry in store.report["bad_items"]] == ["training-000", "training-001"]
        assert str(tmp_path) not in json.dumps(store.report)
        with pytest.raises(InputError, match=r"2 of 3 items are bad \(share 0.6667\), max_bad_share=0.1"):
            prepare(copied, max_bad_share=0.1)

    def test_too_many_leave_a_report_and_are_tried_again(self, copied, prepare, tmp_path):
        mask = read_manifest(copied).root / read_manifest(copied).training[1].label
        content = mask.read_bytes()
        mask.write_bytes(b"no volume")
        with pytest.raises(InputError, match="1 of 3 items are bad") as caught:
            prepare(copied)
        report = next((tmp_path / "stores").glob("*.report.json"))
        assert str(report) in str(caught.value)
        mask.write_bytes(content)
        assert len(prepare(copied)) == 3
        assert not report.exists()

    def test_no_mask_named(self, copied, prepare):
        document = json.loads(copied.read_text())
        document["training"][0]["label"] = "large"
        copied.write_text(json.dumps(document))
        with pytest.raises(InputError, match="training-000: the item's label is no path of a mask file"):
            prepare(copied)

    def test_another_error_shows_its_kind_only(self, volumes, prepare, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("SECRET")

        monkeypatch.setattr(case_building, "read_labelled", fail)
        with pytest.raises(InputError, match=r"could not be read \(RuntimeError\)") as caught:
            prepare(volumes)
        assert "SECRET" not in str(caught.value)

    def test_a_full_disk_and_a_dead_worker(self, volumes, prepare, monkeypatch):
        from concurrent.futures.process import BrokenProcessPool

        def raising(error):
            def fail(*_, **__):
                raise error

            return fail

        monkeypatch.setattr(case_building, "_write_case", raising(OSError(28, "No space left on device")))
        with pytest.raises(InputError, match=r"the disk is full: .* free, ct-cases-training-\w+ needs more than that"):
            prepare(volumes)
        monkeypatch.setattr(case_building, "_write_case", raising(PermissionError(13, "denied")))
        with pytest.raises(PermissionError):
            prepare(volumes)
        monkeypatch.setattr(case_building, "_write_case", raising(BrokenProcessPool()))
        with pytest.raises(InputError, match="fewer workers"):
            prepare(volumes)
        monkeypatch.setattr(case_building, "read_labelled", raising(MemoryError()))
        with pytest.raises(MemoryError):
            prepare(volumes)

    def test_an_array_that_the_disk_cuts_short_is_told_as_a_full_disk(self, volumes, prepare, monkeypatch):
        def short(*_):  # what NumPy raises, without an error number
            raise OSError("10080000 requested and 810880 written")

        monkeypatch.setattr(case_building.np, "save", short)
        with pytest.raises(InputError, match=r"the disk is full"):
            prepare(volumes)

    def test_too_little_room_is_seen_before_the_start(self, volumes, prepare, monkeypatch, tmp_path):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(build_frame.shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 6911, 6911))
        monkeypatch.setattr(case_building, "store_case", None)
        with pytest.raises(InputError, match=r"6.9 kB are free, ct-cases-training-\w+ needs about 6.9 kB"):
            prepare(volumes)  # three cases of at least 6 x 16 x 8 voxels: int16 image and uint8 mask, 6912 bytes

    def test_the_room_for_the_rest_follows_from_finished_cases(self, volumes, prepare, monkeypatch):
        work, seen, needs = case_building.store_case, [], []

        def full_at_second(job):
            seen.append(job)
            if len(seen) == 2:
                raise OSError(28, "No space left on device")
            return work(job)

        monkeypatch.setattr(case_building, "store_case", full_at_second)
        told = case_building.building
        monkeypatch.setattr(case_building, "building", lambda *args: needs.append(args[1]) or told(*args))
        with pytest.raises(InputError, match=r"the disk is full"):
            prepare(volumes)
        written = sum(seen[0].file(kind).stat().st_size for kind in ("image", "mask", "positions"))
        assert needs[0]() == 2 * written
        assert len(prepare(volumes)) == 3

    def test_hopeless_runs_stop_early(self, tmp_path, prepare, monkeypatch):
        manifest = synthetic_manifest(tmp_path / "many", "ct", count=8, shape=(6, 8, 8), regions={"core": [1]})
        for file in (tmp_path / "many").rglob("*.nii*"):
            file.write_bytes(b"no volume")
        monkeypatch.setattr(build_frame, "STOP_EARLY", 3)
        with pytest.raises(InputError, match="3 of 3 items are bad"):
            prepare(manifest)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_bad_share": 1.5}, "max_bad_share=1.5"),
            ({"workers": 0}, "workers=0"),
            ({"split": "train"}, "got 'train'"),
            ({"split": "testing"}, "no item to prepare"),
            ({"modality": "mri"}, "holds ct, got mri"),
        ],
    )
    def test_wrong_arguments(self, volumes, prepare, options, message):
        with pytest.raises(InputError, match=message):
            prepare(volumes, **options)


class TestOpen:
    def test_no_store(self, tmp_path):
        with pytest.raises(InputError, match="index.json is missing"):
            CaseStore(tmp_path, tmp_path)

    def test_damaged(self, volumes, prepare):
        store = prepare(volumes)
        file = store.path / "case-000001.mask.npy"
        content = file.read_bytes()
        file.write_bytes(content[:-3])
        with pytest.raises(InputError, match=f"{len(content)} bytes expected, found {len(content) - 3}"):
            prepare(volumes)
        index = read_json(store.path / "index.json")
        (store.path / "index.json").write_text(json.dumps(index | {"format": 99}))
        with pytest.raises(InputError, match="case format 99"):
            prepare(volumes)

    def test_row_outside(self, volumes, prepare):
        with pytest.raises(InputError, match=r"must be in 0 .. 2 for .*, got 3"):
            prepare(volumes).case(3)


class TestWindows:
    def test_every_place_against_padding_by_hand(self):
        array = np.arange(20, dtype=np.int16).reshape(1, 4, 5)
        padded = np.pad(array, ((0, 0), (5, 5), (5, 5)), constant_values=-7)
        for top in range(-5, 6):
            for left in range(-5, 7):
                window = cut_window(array, (top, left), (3, 3), fill=-7)
                assert np.array_equal(window, padded[:, top + 5 : top + 8, left + 5 : left + 8])

    def test_of_a_case(self, volumes, prepare):
        store = prepare(volumes)
        case = store.case(1)
        image, mask = store.window(1, (2, 3, 4), (5, 6, 7))
        assert np.array_equal(image, case.image[:, 2:7, 3:9, 4:11])
        assert np.array_equal(mask, case.mask[2:7, 3:9, 4:11])
        assert image.flags.writeable
        image, mask = store.window(1, (-20, 0, 0), (5, 6, 7))
        assert (image == -1024).all() and (mask == 0).all()


class TestPositions:
    def test_all_when_there_are_few(self):
        mask = np.zeros((3, 4, 5), np.uint8)
        mask[1, 2, 3], mask[0, 1, 1], mask[2, 0, 4] = 2, 1, 1
        assert foreground_positions(mask, seed=0).tolist() == [[1, 0, 1, 1], [1, 2, 0, 4], [2, 1, 2, 3]]
        assert foreground_positions(np.zeros((3, 4, 5), np.uint8), seed=0).shape == (0, 4)

    def test_small_values_keep_their_part(self):
        mask = np.ones((20, 30), np.uint8)
        mask[:1, :9] = 2
        chosen = foreground_positions(mask, seed=0, limit=100)
        assert np.bincount(chosen[:, 0]).tolist() == [0, 50, 9]
        assert (mask[chosen[:, 1], chosen[:, 2]] == chosen[:, 0]).all()
        assert len(np.unique(chosen, axis=0)) == 59
        assert np.array_equal(chosen, foreground_positions(mask, seed=0, limit=100))
        assert not np.array_equal(chosen, foreground_positions(mask, seed=1, limit=100))

    def test_of_a_case(self, volumes, prepare):
        store = prepare(volumes)
        positions = store.positions(0)
        mask = store.case(0).mask
        assert (mask[tuple(positions[:, 1:].T)] == positions[:, 0]).all()
        assert len(positions) == (mask > 0).sum()
