"""The buffer file and the ways back from it to the samples."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medcoss_components.continual import buffer as buffer_module
from medcoss_components.continual.buffer import (
    StoreView,
    make_buffer,
    materialise_buffer,
    open_buffer_store,
    read_buffer,
    write_buffer,
)
from medcoss_components.continual.exemplars import Exemplars
from medcoss_components.data.modalities import MODALITIES, Modality
from medcoss_components.errors import InputError
from medcoss_components.files import atomic_folder, read_json, write_json

SONAR = Modality(name="test_sonar", dimension=2, input_shape=(3, 4, 6), stored_channels=1, intensity="unit_range")


class FakeStore:
    """The interface of a store over one .npy file."""

    vocabulary_path = None
    manifest_hash = "manifest-hash"

    def __init__(self, path):
        description = read_json(path / "index.json")
        self.path, self.modality = path, SONAR
        self.ids, self.key = description["ids"], description["key"]
        self.labels, self.groups = list(range(len(self.ids))), [f"group-{name}" for name in self.ids]
        self.rows = np.load(path / "rows.npy", mmap_mode="r")

    def __len__(self):
        return len(self.ids)

    def gather(self, indices):
        return np.asarray(self.rows[indices])

    def __getitem__(self, index):
        return {"id": self.ids[index], "image": self.rows[index]}

    def write_subset(self, path, indices):
        return write_fake(path, self.rows[indices], [self.ids[row] for row in indices], f"part-of-{self.key}")


def write_fake(path, rows, ids, key):
    with atomic_folder(path) as partial:
        np.save(partial / "rows.npy", rows)
        write_json(partial / "index.json", {"ids": ids, "key": key})
    return FakeStore(Path(path))


def whole_store(path, size=12, key="key-1"):
    rows = np.arange(size * 24).reshape(size, 1, 4, 6).astype(np.uint8)
    return write_fake(path, rows, [f"s{row}" for row in range(size)], key)


@pytest.fixture(autouse=True)
def _fake_opening(monkeypatch):
    monkeypatch.setattr(buffer_module, "open_store", FakeStore)
    yield
    MODALITIES.pop(SONAR.name, None)


@pytest.fixture
def store(tmp_path):
    return whole_store(tmp_path / "stores" / "sonar-training-abc")


@pytest.fixture
def stage(tmp_path):
    return tmp_path / "runs" / "01_sonar"


def choice(*indices):
    numbers = np.array(indices)
    return Exemplars(
        indices=numbers, clusters=numbers % 2, distances=(numbers / 3).astype(np.float32), assignment=np.arange(12) % 2
    )


def make(store, *indices):
    exemplars = choice(*(indices or (1, 4, 9)))
    return make_buffer(store=store, exemplars=exemplars, encoder_hash="encoder", ratio=0.25, seed=7)


def edit(file, **changes):
    content = read_json(file)
    content.update(changes)
    file.write_text(json.dumps(content))
    return file


def test_file_round_trip(store, stage):
    buffer = make(store)
    file = write_buffer(buffer, stage)
    assert file == stage / "buffer.json"
    assert read_buffer(stage) == read_buffer(file) == buffer
    assert len(buffer) == 3 and buffer.name == "test_sonar" and buffer.source_size == 12


def test_file_content_is_for_people_and_has_no_absolute_path(store, stage, tmp_path):
    text = write_buffer(make(store), stage / "named.json").read_text()
    assert '    {"id": "s4", "index": 4, "cluster": 0, "distance": 1.33333},\n' in text
    assert str(tmp_path) not in text
    content = json.loads(text)
    assert content["format"] == 1 and content["size"] == 3 and content["modality"]["name"] == "test_sonar"
    assert content["store"] == "../../stores/sonar-training-abc" and content["materialised"] is None


def test_reading_needs_no_registered_modality_and_opening_registers_it(store, stage):
    write_buffer(make(store), stage)
    buffer = read_buffer(stage)
    assert SONAR.name not in MODALITIES
    open_buffer_store(buffer)
    assert MODALITIES[SONAR.name] == buffer.entry == SONAR


def test_view_gives_the_exemplars_in_order(store, stage):
    write_buffer(make(store), stage)
    view = open_buffer_store(read_buffer(stage))
    assert len(view) == 3 and list(view.ids) == ["s1", "s4", "s9"]
    assert view.labels == [1, 4, 9] and view.groups == ["group-s1", "group-s4", "group-s9"]
    np.testing.assert_array_equal(view.gather(np.array([2, 0])), store.rows[[9, 1]])
    np.testing.assert_array_equal(view[1]["image"], store.rows[4])
    assert (view.key, view.manifest_hash, view.modality, view.path) == ("key-1", "manifest-hash", SONAR, store.path)
    assert view.vocabulary_path is None


def test_view_of_a_view_and_its_copy(store, tmp_path):
    view = StoreView(StoreView(store, [1, 4, 9]), [2, 1])
    assert list(view.ids) == ["s9", "s4"]
    copy = view.write_subset(tmp_path / "copy", [1, 0])
    assert copy.ids == ["s4", "s9"]
    np.testing.assert_array_equal(copy.rows, store.rows[[4, 9]])


@pytest.mark.parametrize("row", [-1, 12])
def test_view_rejects_rows_outside(store, row):
    with pytest.raises(InputError, match=rf"0..11, received {row}"):
        StoreView(store, [0, row])


def test_moving_stores_and_runs_together_keeps_the_buffer_working(store, stage, tmp_path):
    write_buffer(make(store), stage)
    (tmp_path / "elsewhere").mkdir()
    for name in ("stores", "runs"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    view = open_buffer_store(read_buffer(tmp_path / "elsewhere" / "runs" / "01_sonar"))
    assert view.path == (tmp_path / "elsewhere" / "stores" / "sonar-training-abc").resolve()


def test_store_dir_finds_a_store_that_moved(store, stage, tmp_path):
    write_buffer(make(store), stage)
    shutil.move(store.path.parent, tmp_path / "archive")
    buffer = read_buffer(stage)
    assert list(open_buffer_store(buffer, tmp_path / "archive").ids) == ["s1", "s4", "s9"]
    with pytest.raises(
        InputError, match="no such folder.*no such folder.*--store_dir.*sonar-training-abc.*materialise"
    ):
        open_buffer_store(buffer, tmp_path / "wrong")


def test_a_store_with_another_key_is_refused(store, stage):
    write_buffer(make(store), stage)
    shutil.rmtree(store.path)
    whole_store(store.path, key="key-2")
    with pytest.raises(InputError, match="store key key-1.*has another key, key-2"):
        open_buffer_store(read_buffer(stage))


def test_a_store_with_other_ids_or_too_few_samples_is_refused(store, stage):
    write_buffer(replace(make(store), ids=("s1", "s4", "s8")), stage)
    with pytest.raises(InputError, match="does not hold the ids"):
        open_buffer_store(read_buffer(stage))
    shutil.rmtree(store.path)
    whole_store(store.path, size=5)
    with pytest.raises(InputError, match="has 5 samples"):
        open_buffer_store(read_buffer(stage))


def test_a_broken_store_is_reported(store, stage):
    write_buffer(make(store), stage)
    (store.path / "index.json").unlink()
    with pytest.raises(InputError, match="no usable store: .*index.json: no such file"):
        open_buffer_store(read_buffer(stage))


def materialised(store, stage):
    buffer = materialise_buffer(make(store), store, stage / "buffer_store")
    write_buffer(buffer, stage)
    return buffer


def test_materialised_buffer_lives_without_the_data(store, stage, tmp_path):
    expected = store.rows[[1, 4, 9]].copy()
    materialised(store, stage)
    shutil.rmtree(store.path)
    shutil.copytree(stage, tmp_path / "far" / "away")
    shutil.rmtree(stage)
    view = open_buffer_store(read_buffer(tmp_path / "far" / "away"))
    assert list(view.ids) == ["s1", "s4", "s9"]
    np.testing.assert_array_equal(view.gather(np.arange(3)), expected)
    assert read_json(tmp_path / "far" / "away" / "buffer.json")["materialised"] == "buffer_store"


def test_materialised_copy_wins_over_the_store(store, stage):
    materialised(store, stage)
    assert open_buffer_store(read_buffer(stage)).path == stage / "buffer_store"


def test_without_its_copy_a_materialised_buffer_uses_the_store(store, stage):
    materialised(store, stage)
    shutil.rmtree(stage / "buffer_store")
    assert open_buffer_store(read_buffer(stage)).path == store.path


def test_a_half_written_copy_is_never_picked_up(store, stage, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        materialised(store, stage)
    assert not (stage / "buffer_store").exists()
    assert list(stage.iterdir()) == []


def test_a_former_copy_is_replaced(store, stage):
    materialised(store, stage)
    buffer = materialise_buffer(make(store, 0, 2), store, stage / "buffer_store")
    write_buffer(buffer, stage)
    assert list(open_buffer_store(read_buffer(stage)).ids) == ["s0", "s2"]
    assert sorted(entry.name for entry in stage.iterdir()) == ["buffer.json", "buffer_store"]


def test_a_copy_of_another_choice_is_not_used(store, stage):
    materialised(store, stage)
    write_buffer(replace(make(store, 0, 2), materialised=str(stage / "buffer_store")), stage)
    assert open_buffer_store(read_buffer(stage)).path == store.path
    write_buffer(replace(make(store, 0, 2, 5), materialised=str(stage / "buffer_store")), stage)
    assert open_buffer_store(read_buffer(stage)).path == store.path


def test_materialising_from_the_opened_view(store, stage, tmp_path):
    write_buffer(make(store), stage)
    buffer = read_buffer(stage)
    copied = materialise_buffer(buffer, open_buffer_store(buffer), tmp_path / "copy")
    assert FakeStore(Path(copied.materialised)).ids == ["s1", "s4", "s9"]
    again = materialise_buffer(copied, open_buffer_store(copied), tmp_path / "second")
    np.testing.assert_array_equal(FakeStore(Path(again.materialised)).rows, store.rows[[1, 4, 9]])


def test_materialising_refuses_wrong_targets_and_stores(store, tmp_path):
    buffer = make(store)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "precious.txt").write_text("keep")
    with pytest.raises(InputError, match="notes exists and is not a usable store"):
        materialise_buffer(buffer, store, tmp_path / "notes")
    assert (tmp_path / "notes" / "precious.txt").exists()
    with pytest.raises(InputError, match="is the store to copy from"):
        materialise_buffer(buffer, store, store.path)
    with pytest.raises(InputError, match="does not hold the 3 samples"):
        materialise_buffer(buffer, whole_store(tmp_path / "small", size=5), tmp_path / "copy")


def test_reading_says_what_is_wrong(store, stage):
    with pytest.raises(InputError, match="buffer.json: no such file"):
        read_buffer(stage)
    file = write_buffer(make(store), stage)
    good = read_json(file)
    rows = good["exemplars"]
    cases = {
        "format 1, found 2": {"format": 2},
        "found 4 and 3": {"size": 4},
        "found 0 and 0": {"size": 0, "exemplars": []},
        "stands in the list twice": {"exemplars": [rows[0], rows[0], rows[1]]},
        "0..11, found 12": {"exemplars": [*rows[:2], rows[2] | {"index": 12}]},
        "not negative, found -1.0": {"exemplars": [*rows[:2], rows[2] | {"distance": -1}]},
        "TypeError": {"exemplars": None},
        "KeyError: 'cluster'": {"exemplars": [{"id": "s1", "index": 1}]},
        "missing keys": {"modality": {"name": "test_sonar"}},
    }
    for message, change in cases.items():
        with pytest.raises(InputError, match=message):
            read_buffer(edit(file, **(good | change)))
    file.write_text("[]")
    with pytest.raises(InputError, match="format 1, found None"):
        read_buffer(file)


def test_paths_on_another_drive_stay_as_they_are(monkeypatch, store, stage):
    def no_way(*_):
        raise ValueError("path is on mount 'D:'")

    monkeypatch.setattr(buffer_module.os.path, "relpath", no_way)
    write_buffer(make(store), stage)
    assert read_json(stage / "buffer.json")["store"] == str(store.path)
    assert open_buffer_store(read_buffer(stage)).path == store.path
