import errno
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medcoss_components.data import build_frame, building, shards
from medcoss_components.data import store as store_module
from medcoss_components.data.manifest import read_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.store import Store, open_store, prepare_store
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, sha256_file
from medcoss_components.text.vocabulary import train_vocabulary

SHAPES = {
    "report": (12,),
    "xray": (3, 20, 30),
    "pathology": (3, 20, 30),
    "ct": (1, 4, 6, 8),
    "mri": (1, 4, 6, 8),
}
FILES = {"xray": (24, 36), "pathology": (24, 36), "ct": (10, 12, 16), "mri": (12, 12, 16), "report": None}


def small(name):
    return get_modality(name, input_shape=SHAPES[name])


def make_manifest(folder, name, count=8, **options):
    return synthetic_manifest(folder, name, count=count, shape=FILES[name], **options)


def make_vocabulary(manifest):
    return train_vocabulary([item.text for item in read_manifest(manifest).items()], size=200)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def prepare(manifest, name, store_dir, **options):
    vocabulary = make_vocabulary(manifest) if name == "report" else None
    defaults = {"modality": small(name), "vocabulary": vocabulary, "workers": 1, "progress": False}
    return prepare_store(manifest=manifest, store_dir=store_dir, **(defaults | options))


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    return {name: make_manifest(tmp_path_factory.mktemp(name), name) for name in SHAPES}


@pytest.fixture(scope="module")
def stores(manifests, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return {name: prepare(manifest, name, folder) for name, manifest in manifests.items()}


@pytest.mark.parametrize("name", SHAPES)
class TestStoreContract:
    """What every store does, whatever its modality."""

    def test_holds_the_items_in_order(self, name, stores, manifests):
        store, items = stores[name], read_manifest(manifests[name]).items()
        assert len(store) == len(store.ids) == len(store.labels) == len(store.groups)
        assert list(dict.fromkeys(sample.split("#")[0] for sample in store.ids)) == [item.id for item in items]
        by_id = {item.id: item for item in items}
        for sample, label, group in zip(store.ids, store.labels, store.groups, strict=True):
            item = by_id[sample.split("#")[0]]
            assert (label, group) == (item.label, item.group)

    def test_gathers_any_order_with_repetitions(self, name, stores):
        store = stores[name]
        everything = store.gather(np.arange(len(store)))
        assert everything.shape == (len(store), *small(name).stored_shape)
        assert everything.dtype == np.dtype(small(name).stored_dtype)
        indices = [3, 0, 3, len(store) - 1]
        assert np.array_equal(store.gather(indices), everything[indices])
        assert store.gather([]).shape == (0, *small(name).stored_shape)

    @pytest.mark.parametrize("position", [-1, 10**6])
    def test_gather_outside(self, name, stores, position):
        with pytest.raises(InputError, match=f"indices: must be in 0 .. .*{position}"):
            stores[name].gather([0, position])

    def test_item_is_the_model_input(self, name, stores):
        store = stores[name]
        sample = store[-1]
        content = sample[store.modality.content_key]
        assert sample["id"] == store.ids[-1] and content.shape == store.modality.input_shape
        assert content.dtype == (torch.int64 if name == "report" else torch.float32)
        with pytest.raises(IndexError):
            store[len(store)]

    def test_pickles_as_its_path(self, name, stores):
        store = stores[name]
        store.gather([0])
        data = pickle.dumps(store)
        assert len(data) < 1000
        assert np.array_equal(pickle.loads(data).gather([1]), store.gather([1]))

    def test_subset_is_a_store_of_its_own(self, name, stores, tmp_path):
        store, chosen = stores[name], [5, 2, 2]
        subset = store.write_subset(tmp_path / "buffer" / "store", chosen)
        source, subset = store, open_store(shutil.move(subset.path, tmp_path / "moved"))
        assert np.array_equal(subset.gather([0, 1, 2]), source.gather(chosen))
        assert subset.ids == [source.ids[i] for i in chosen] and subset.labels == [source.labels[i] for i in chosen]
        assert subset.groups == [source.groups[i] for i in chosen]
        assert (subset.modality, subset.manifest_hash) == (source.modality, source.manifest_hash)
        assert subset.key != source.key
        assert (subset.vocabulary_path is None) == (name != "report")
        subset.verify()

    def test_bytes_do_not_depend_on_the_run(self, name, stores, manifests, tmp_path):
        again = prepare(manifests[name], name, tmp_path)
        assert again.path.name == stores[name].path.name
        assert contents(again.path) == contents(stores[name].path)
        assert [path.name for path in tmp_path.iterdir()] == [again.path.name]


class TestStore:
    def test_data_loader_workers_read_it(self, stores):
        loader = DataLoader(stores["xray"], batch_size=3, num_workers=1, multiprocessing_context="fork")
        batches = list(loader)
        assert [len(batch["id"]) for batch in batches] == [3, 3, 2]
        assert torch.equal(batches[0]["image"][1], stores["xray"][1]["image"])

    def test_several_shards_read_like_one(self, manifests, stores, tmp_path, monkeypatch):
        monkeypatch.setattr(shards, "SHARD_BYTES", 3 * 600)
        store = prepare(manifests["xray"], "xray", tmp_path)
        assert [shard["count"] for shard in store.index["shards"]] == [3, 3, 2]
        indices = [7, 0, 5, 3, 2]
        assert np.array_equal(store.gather(indices), stores["xray"].gather(indices))
        subset = store.write_subset(tmp_path / "subset", [6, 7, 0, 1])
        assert [shard["count"] for shard in subset.index["shards"]] == [3, 1]
        assert np.array_equal(subset.gather([3, 0]), store.gather([1, 6]))

    def test_threads_open_it_once(self, stores, monkeypatch):
        opened, real = [], store_module.read_json
        slow = lambda path: opened.append(path.name) or time.sleep(0.02) or real(path)  # noqa: E731
        store = open_store(stores["ct"].path)
        monkeypatch.setattr(store_module, "read_json", slow)
        with ThreadPoolExecutor(4) as executor:
            ids = list(executor.map(lambda _: store.ids, range(8)))
            samples = list(executor.map(lambda row: store.gather([row]), range(4)))
        assert opened == ["items.json"] and all(names is ids[0] for names in ids)
        assert np.array_equal(np.concatenate(samples), stores["ct"].gather(range(4)))

    def test_shards_are_plain_numpy_files(self, stores):
        store = stores["ct"]
        assert np.array_equal(np.load(store.path / "shard-0000.npy"), store.gather(np.arange(len(store))))

    def test_text_store_carries_its_vocabulary_and_no_text(self, stores, manifests):
        store = stores["report"]
        assert sha256_file(store.vocabulary_path) == store.index["vocabulary_hash"]
        sentence = read_manifest(manifests["report"]).items()[0].text
        for name, data in contents(store.path).items():
            assert sentence.encode() not in data, name

    def test_large_vocabulary_is_stored_as_uint32(self, manifests, tmp_path):
        (tmp_path / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(65600)), "the"])
        )
        store = prepare(manifests["report"], "report", tmp_path / "s", vocabulary=tmp_path / "vocab.txt")
        assert store.dtype == np.uint32 and 65605 in store.gather([0, 1])
        assert store[0]["text"].dtype == torch.int64

    def test_repr_says_what_it_holds(self, stores):
        assert "8 samples of xray" in repr(stores["xray"])

    def test_no_store(self, tmp_path):
        with pytest.raises(InputError, match=r"index\.json is missing"):
            open_store(tmp_path)

    def test_damage_is_named(self, stores, tmp_path):
        folder = shutil.copytree(stores["xray"].path, tmp_path / "copy")
        shard = folder / "shard-0000.npy"
        data = bytearray(shard.read_bytes())
        data[-1] ^= 255
        shard.write_bytes(bytes(data))
        with pytest.raises(InputError, match=r"shard-0000\.npy: changed since"):
            open_store(folder).verify()
        shard.write_bytes(bytes(data[:-1]))
        with pytest.raises(InputError, match=rf"shard-0000\.npy: {len(data)} bytes expected, found {len(data) - 1}"):
            open_store(folder)
        shard.unlink()
        with pytest.raises(InputError, match="found None"):
            open_store(folder)

    def test_other_format(self, stores, tmp_path):
        folder = shutil.copytree(stores["xray"].path, tmp_path / "copy")
        index = read_json(folder / "index.json")
        (folder / "index.json").write_text(json.dumps(index | {"format": 99}))
        with pytest.raises(InputError, match="store format 99, this version reads 1"):
            open_store(folder)


class TestSubset:
    def test_is_reused_when_equal(self, stores, tmp_path):
        first = stores["ct"].write_subset(tmp_path / "s", [1, 3])
        written = (first.path / "index.json").stat().st_mtime_ns
        second = stores["ct"].write_subset(tmp_path / "s", np.array([1, 3]))
        assert (second.path / "index.json").stat().st_mtime_ns == written

    def test_never_overwrites_another(self, stores, tmp_path):
        stores["ct"].write_subset(tmp_path / "s", [1, 3])
        with pytest.raises(InputError, match="holds another store"):
            stores["ct"].write_subset(tmp_path / "s", [3, 1])

    def test_needs_a_sample(self, stores, tmp_path):
        with pytest.raises(InputError, match="at least one sample, got none"):
            stores["ct"].write_subset(tmp_path / "s", [])

    def test_interrupted_write_leaves_nothing(self, stores, tmp_path, monkeypatch):
        monkeypatch.setattr(Store, "_blocks", lambda self, indices: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stores["ct"].write_subset(tmp_path / "s", [1])
        assert list(tmp_path.iterdir()) == []


class TestKey:
    def key(self, manifest, tmp_path, name="xray", **options):
        return prepare(manifest, name, tmp_path, **options).key

    def test_unchanged_content_is_reused(self, manifests, tmp_path, monkeypatch):
        first = prepare(manifests["xray"], "xray", tmp_path)
        monkeypatch.setattr("medcoss_components.data.store.build_store", None)
        assert prepare(manifests["xray"], "xray", tmp_path).path == first.path

    def test_every_setting_counts(self, manifests, tmp_path):
        path = manifests["xray"]
        keys = [
            self.key(path, tmp_path),
            self.key(path, tmp_path, split="validation"),
            self.key(path, tmp_path, preparation={"fit": "pad"}),
            prepare(path, "xray", tmp_path, modality=get_modality("xray", input_shape=(3, 16, 16))).key,
        ]
        assert len(set(keys)) == 4

    def test_the_vocabulary_counts(self, manifests, tmp_path):
        vocabulary = train_vocabulary(["another text"], size=60)
        keys = [self.key(manifests["report"], tmp_path, "report", **o) for o in ({}, {"vocabulary": vocabulary})]
        assert len(set(keys)) == 2

    def test_settings_of_the_manifest_apply(self, tmp_path):
        path = make_manifest(tmp_path, "xray", count=2, preparation={"tile": [12, 12]})
        tiled = prepare(path, "xray", tmp_path / "s")
        assert len(tiled) == 2 * 2 * 3 and tiled.ids[:2] == ["training-000#0", "training-000#1"]
        assert len(prepare(path, "xray", tmp_path / "s", preparation={"tile": None})) == 2

    def test_a_moved_data_set_keeps_its_store(self, tmp_path):
        path = make_manifest(tmp_path / "one", "xray", count=3)
        first = prepare(path, "xray", tmp_path / "s1")
        shutil.move(tmp_path / "one", tmp_path / "two")
        second = prepare(tmp_path / "two" / "manifest.json", "xray", tmp_path / "s2")
        assert contents(first.path) == contents(second.path)


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_bad_share": 1.5}, "max_bad_share=1.5"),
            ({"workers": 0}, "workers=0"),
            ({"split": "test"}, "split must be one of .*'test'"),
            ({"modality": "ct"}, "holds xray, got ct"),
            ({"preparation": {"depth": 3}}, "'depth' is no setting of modality xray"),
        ],
    )
    def test_wrong_ones_are_named(self, manifests, tmp_path, options, message):
        with pytest.raises(InputError, match=message):
            prepare(manifests["xray"], "xray", tmp_path, **options)
        assert list(tmp_path.iterdir()) == []

    def test_text_needs_a_vocabulary(self, manifests, tmp_path):
        with pytest.raises(InputError, match="modality report is text and needs one, got None"):
            prepare(manifests["report"], "report", tmp_path, vocabulary=None)
        job = shards.PartJob(number=0, items=(), modality=small("report"), settings={}, folder=tmp_path)
        with pytest.raises(InputError, match="modality report is text"):
            shards.prepare_part(job)

    def test_modality_defaults_to_the_manifest(self, tmp_path):
        path = make_manifest(tmp_path, "xray", count=1)
        store = prepare_store(manifest=read_manifest(path), store_dir=tmp_path / "s", progress=False)
        assert store.modality == get_modality("xray") and store.gather([0]).shape == (1, 1, 224, 224)

    def test_dataset_dir(self, tmp_path):
        path = make_manifest(tmp_path / "data", "xray", count=1)
        moved = shutil.copy(path, tmp_path / "manifest.json")
        assert len(prepare(moved, "xray", tmp_path / "s", dataset_dir=tmp_path / "data")) == 1


class TestBadItems:
    defects = ("missing_file", "truncated", "wrong_modality")

    def test_are_left_out_and_listed(self, tmp_path, caplog):
        path = make_manifest(tmp_path, "ct", count=12, defects=(*self.defects, "nan"))
        with caplog.at_level(logging.WARNING):
            store = prepare(path, "ct", tmp_path / "s", max_bad_share=0.5)
        report = store.report
        assert [entry["id"] for entry in report["bad_items"]] == [f"training-{k:03d}" for k in range(4)]
        reasons = [entry["reason"] for entry in report["bad_items"]]
        for part, reason in zip(("no such file", "truncated", "US", "NaN"), reasons, strict=True):
            assert part in reason and str(tmp_path) not in reason
        assert (report["items"], report["bad_share"], report["samples"]) == (12, 4 / 12, len(store))
        assert {sample.split("#")[0] for sample in store.ids} == {f"training-{k:03d}" for k in range(4, 12)}
        assert "4 of 12 items of ct-training" in caplog.text and "report.json" in caplog.text

    def test_above_the_share_there_is_no_store(self, tmp_path):
        path = make_manifest(tmp_path, "xray", count=10, defects=self.defects)
        with pytest.raises(InputError) as caught:
            prepare(path, "xray", tmp_path / "s", max_bad_share=0.2)
        message = str(caught.value)
        report = next((tmp_path / "s").glob("*.report.json"))
        for part in (
            "3 of 10",
            "share 0.3",
            "max_bad_share=0.2",
            "training-000: files/training-000.png: no such",
            str(report),
        ):
            assert part in message
        assert len(read_json(report)["bad_items"]) == 3
        assert not list((tmp_path / "s").glob("xray-training-*/"))

    def test_repaired_files_are_read_again(self, tmp_path):
        path = make_manifest(tmp_path, "xray", count=6, defects=("missing_file",))
        with pytest.raises(InputError, match="1 of 6"):
            prepare(path, "xray", tmp_path / "s")
        shutil.copy(tmp_path / "files" / "training-001.png", tmp_path / "files" / "training-000.png")
        assert len(prepare(path, "xray", tmp_path / "s")) == 6
        assert not list((tmp_path / "s").glob("*.report.json"))

    def test_a_finished_store_is_held_to_the_share_too(self, tmp_path):
        path = make_manifest(tmp_path, "xray", count=6, defects=("missing_file",))
        prepare(path, "xray", tmp_path / "s", max_bad_share=0.5)
        with pytest.raises(InputError, match=r"1 of 6.*max_bad_share=0\.1"):
            prepare(path, "xray", tmp_path / "s", max_bad_share=0.1)

    def test_text_reasons_quote_nothing(self, tmp_path):
        path = make_manifest(tmp_path, "report", count=6, defects=("empty_text",))
        store = prepare(path, "report", tmp_path / "s", max_bad_share=0.5)
        assert store.report["bad_items"] == [{"id": "training-000", "reason": "the text is empty"}]
        assert len(store) == 5

    def test_surprises_of_a_reader_show_their_kind_only(self, manifests, tmp_path, monkeypatch):
        def surprise(item, **_):
            raise KeyError("Doe^Jane")

        monkeypatch.setattr(shards, "prepare_item", surprise)
        with pytest.raises(InputError, match=r"could not be read \(KeyError\)") as caught:
            prepare(manifests["xray"], "xray", tmp_path)
        assert "Doe" not in str(caught.value)

    def test_a_failing_item_leaves_no_samples(self, manifests, tmp_path, monkeypatch):
        def halfway(item, *, modality, settings):
            yield np.arange(600, dtype=np.uint8).reshape(1, 20, 30)
            if item.id == "training-003":
                raise InputError("breaks in the middle")

        monkeypatch.setattr(shards, "prepare_item", halfway)
        store = prepare(manifests["xray"], "xray", tmp_path, max_bad_share=0.5)
        assert len(store) == 7 and "training-003" not in store.ids
        assert (store.path / "shard-0000.npy").stat().st_size == 128 + 7 * 600

    def test_constant_samples_are_counted(self, tmp_path, monkeypatch):
        path = make_manifest(tmp_path, "ct", count=2)

        def blank_first(item, *, modality, settings):
            yield np.zeros((1, 4, 6, 8), np.int16)
            if item.id == "training-000":
                yield np.arange(192, dtype=np.int16).reshape(1, 4, 6, 8)

        monkeypatch.setattr(shards, "prepare_item", blank_first)
        store = prepare(path, "ct", tmp_path / "s", max_bad_share=0.5)
        assert store.ids == ["training-000#0"] and store.report["constant_samples_left_out"] == 1
        assert store.report["bad_items"][0]["reason"] == "every sample of the item is constant"

    def test_hopeless_runs_stop_early(self, tmp_path, monkeypatch):
        path = make_manifest(tmp_path, "xray", count=40)
        shutil.rmtree(tmp_path / "files")
        monkeypatch.setattr(build_frame, "STOP_EARLY", 5)
        with pytest.raises(InputError, match="6 of 6 items are bad"):
            prepare(path, "xray", tmp_path / "s")

    def test_an_empty_split(self, tmp_path):
        path = make_manifest(tmp_path, "xray", count=0, validation=1)
        with pytest.raises(InputError, match="holds no item"):
            prepare(path, "xray", tmp_path / "s")


class TestDiskFull:
    def test_too_little_room_is_seen_before_the_start(self, manifests, tmp_path, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(build_frame.shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 100, 100))
        with pytest.raises(InputError, match=rf"store_dir {tmp_path}.*100 B are free, xray-\S+ needs about 4.8 kB\."):
            prepare(manifests["xray"], "xray", tmp_path)

    @pytest.mark.parametrize("target", ["_write_samples", "write_json"])
    def test_in_a_part(self, manifests, stores, tmp_path, monkeypatch, target):
        self.run_full(manifests, stores, tmp_path, monkeypatch, (shards, target))

    @pytest.mark.parametrize("target", ["write_shard", "write_json"])
    def test_in_joining(self, manifests, stores, tmp_path, monkeypatch, target):
        self.run_full(manifests, stores, tmp_path, monkeypatch, (building, target))

    def run_full(self, manifests, stores, tmp_path, monkeypatch, target):
        original, calls = getattr(*target), []

        def full_at_second_call(*args, **kwargs):
            calls.append(1)
            if len(calls) >= (1 if target[1] == "write_shard" else 2):
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(*target, full_at_second_call)
            with pytest.raises(InputError, match=r"the disk is full: .* free, xray-training-\w+ needs more than that"):
                prepare(manifests["xray"], "xray", tmp_path)
        assert not list(tmp_path.glob("xray-training-*"))
        assert contents(prepare(manifests["xray"], "xray", tmp_path).path) == contents(stores["xray"].path)

    def test_a_file_in_the_place_of_the_folder(self, manifests, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"store_dir .*file/stores: cannot be made \(Not a directory\)"):
            prepare(manifests["xray"], "xray", tmp_path / "file" / "stores")

    def test_other_system_errors_pass(self, manifests, tmp_path, monkeypatch):
        def denied(*args, **kwargs):
            raise PermissionError(errno.EACCES, "denied")

        monkeypatch.setattr(building, "write_shard", denied)
        with pytest.raises(PermissionError):
            prepare(manifests["xray"], "xray", tmp_path)

    def test_lack_of_memory_is_no_bad_item(self, manifests, tmp_path, monkeypatch):
        def exhausted(*args, **kwargs):
            raise MemoryError

        monkeypatch.setattr(shards, "prepare_item", exhausted)
        with pytest.raises(MemoryError):
            prepare(manifests["xray"], "xray", tmp_path)


SCRIPT = """
import os, signal, sys
from medcoss_components.data import building, shards
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.store import prepare_store

def kill_at(module, name, call, before=True):
    original, calls = getattr(module, name), []
    def wrapped(*args, **kwargs):
        calls.append(1)
        if before and len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(module, name, wrapped)

if __name__ == "__main__":
    manifest, store_dir, workers, kill = sys.argv[1:]
    if kill:
        exec(kill)
    prepare_store(manifest=manifest, modality=get_modality("xray", input_shape=(3, 20, 30)), store_dir=store_dir,
                  workers=int(workers), progress=False)
"""


@pytest.fixture
def start(tmp_path):
    """Start a preparation in a process of its own; what is still running at the end is killed."""
    script, processes = tmp_path / "script.py", []
    script.write_text(textwrap.dedent(SCRIPT))

    def start(manifest, store_dir, workers=1, kill=""):
        command = [sys.executable, str(script), str(manifest), str(store_dir), str(workers), kill]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


class TestInterruption:
    @pytest.mark.parametrize(
        "point",
        [
            "kill_at(shards, 'write_json', 4)",  # between a part's data and its note
            "kill_at(building, 'write_shard', 1, before=False)",  # parts joined, nothing else
            "kill_at(building, 'write_json', 4, before=False)",  # complete but not published
        ],
    )
    def test_goes_on_after_kill(self, point, manifests, stores, start, tmp_path):
        killed = start(manifests["xray"], tmp_path / "s", kill=point)
        assert killed.wait(60) == -signal.SIGKILL
        assert not list((tmp_path / "s").glob("xray-training-*")) and list((tmp_path / "s").glob(".xray-*.work"))
        store = prepare(manifests["xray"], "xray", tmp_path / "s")
        assert contents(store.path) == contents(stores["xray"].path)
        assert [path.name for path in (tmp_path / "s").iterdir()] == [store.path.name]

    def test_finished_parts_are_kept_after_a_kill_within_one(self, manifests, stores, start, tmp_path, monkeypatch):
        start(manifests["xray"], tmp_path / "s", kill="kill_at(shards, '_write_samples', 6)").wait(60)
        assert list((tmp_path / "s").glob(".xray-*.work/.part-*.partial.bin"))
        seen = []
        original = shards.prepare_item
        monkeypatch.setattr(shards, "prepare_item", lambda item, **k: (seen.append(item.id), original(item, **k))[1])
        store = prepare(manifests["xray"], "xray", tmp_path / "s")
        assert contents(store.path) == contents(stores["xray"].path)
        assert seen == ["training-005", "training-006", "training-007"]

    @pytest.mark.slow
    def test_killed_parent_takes_its_workers_along(self, start, tmp_path):
        path = make_manifest(tmp_path / "data", "xray", count=300)
        process = start(path, tmp_path / "s", workers=2)
        while process.poll() is None and not list((tmp_path / "s").glob(".*.work/part-*.json")):
            time.sleep(0.005)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [int(pid) for pid in children.read_text().split()] if children.is_file() else []
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while any(_is_running(pid) for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in workers if _is_running(pid)]
        store, reference = (prepare(path, "xray", tmp_path / name) for name in ("s", "reference"))
        assert contents(store.path) == contents(reference.path)


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestSeveralProcesses:
    def test_workers_do_not_change_the_bytes(self, manifests, stores, tmp_path):
        store = prepare(manifests["mri"], "mri", tmp_path, workers=2)
        assert contents(store.path) == contents(stores["mri"].path)

    def test_two_at_once_make_one_store(self, manifests, stores, start, tmp_path):
        both = [start(manifests["xray"], tmp_path / "s") for _ in range(2)]
        errors = [process.communicate(timeout=60)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], errors
        (folder,) = (tmp_path / "s").iterdir()
        assert contents(folder) == contents(stores["xray"].path)

    def test_the_second_waits_and_takes_the_first_ones_store(self, manifests, stores, tmp_path, caplog):
        import fcntl
        import threading

        name = stores["xray"].path.name
        with open(tmp_path / f".{name}.lock", "w") as stream, caplog.at_level(logging.INFO):
            fcntl.flock(stream, fcntl.LOCK_EX)
            result = []
            second = threading.Thread(target=lambda: result.append(prepare(manifests["xray"], "xray", tmp_path)))
            second.start()
            while "waiting for it" not in caplog.text:
                time.sleep(0.01)
            shutil.copytree(stores["xray"].path, tmp_path / name)
            fcntl.flock(stream, fcntl.LOCK_UN)
            second.join(30)
        assert result[0].path == tmp_path / name

    def test_a_dead_worker_is_explained(self, manifests, tmp_path, monkeypatch):
        from concurrent.futures.process import BrokenProcessPool

        def broken(*args, **kwargs):
            raise BrokenProcessPool
            yield

        monkeypatch.setattr(building, "run_jobs", broken)
        with pytest.raises(InputError, match="a preparation process died.*fewer workers"):
            prepare(manifests["xray"], "xray", tmp_path)

    @pytest.mark.parametrize(
        ("name", "items", "workers", "expected"),
        [
            ("xray", 1000, 2, 2),
            ("xray", 1000, None, 4),
            ("xray", 60, None, 1),
            ("ct", 12, None, 3),
            ("report", 10**5, 8, 1),
        ],
    )
    def test_number_of_workers(self, name, items, workers, expected, manifests, tmp_path, monkeypatch):
        monkeypatch.setattr(building, "available_cores", lambda: 4)
        plan = building.StorePlan(
            manifest=read_manifest(manifests[name]),
            split="training",
            modality=small(name),
            settings={},
            vocabulary=None,
            store_dir=tmp_path,
        )
        some = read_manifest(manifests[name]).items()[:1] * items
        jobs = shards.split_into_jobs(some, modality=small(name), settings={}, folder=tmp_path)
        assert building._worker_count(plan, jobs, workers) == expected


class TestParts:
    def test_the_cut_depends_on_the_number_of_items_alone(self, tmp_path):
        common = {"modality": small("xray"), "settings": {}, "folder": tmp_path}
        items = (None,) * 100
        jobs = shards.split_into_jobs(items, **common)
        assert [len(job.items) for job in jobs] == [4] * 25
        assert len(shards.split_into_jobs((None,) * 10000, **common)) == 79  # 128 each
        assert len(shards.split_into_jobs(items, **(common | {"modality": small("report")}))) == 1

    @pytest.mark.parametrize("damage", ["cut", "no_note", "no_data"])
    def test_half_a_part_does_not_count(self, damage, manifests, tmp_path):
        items = read_manifest(manifests["xray"]).items()[:2]
        settings = {"fit": "crop", "tile": None, "stride": None, "percentiles": None}
        job = shards.PartJob(number=3, items=items, modality=small("xray"), settings=settings, folder=tmp_path)
        note = shards.prepare_part(job)
        assert shards.finished_note(job) == note
        if damage == "cut":
            job.data_path.write_bytes(job.data_path.read_bytes()[:-1])
        else:
            (job.note_path if damage == "no_note" else job.data_path).unlink()
        assert shards.finished_note(job) is None

    def test_room_needed_follows_the_samples_per_item(self, manifests, tmp_path):
        manifest = read_manifest(manifests["ct"])
        plan = building.StorePlan(
            manifest=manifest,
            split="training",
            modality=small("ct"),
            settings={"slices_stride": 4, "middle": 1.0, "orientations": ["axial"], "fit": "pad", "percentiles": None},
            vocabulary=None,
            store_dir=tmp_path,
        )
        sample = 4 * 6 * 8 * 2
        assert building._bytes_needed(plan) == 8 * sample
        plan.work.mkdir()
        jobs = building._jobs(plan)
        shards.prepare_part(jobs[0])  # one volume of 10 slices gives 2 samples
        assert building._bytes_needed(plan) == 7 * 2 * sample


class TestRunJobs:
    def test_in_this_process(self):
        from medcoss_components.data.workers import run_jobs

        assert list(run_jobs(abs, [-1, 2], workers=1)) == [(-1, 1), (2, 2)]

    def test_hands_out_a_window_and_passes_errors_on(self):
        """Threads stand in for processes; those are tried by test_workers_do_not_change_the_bytes."""
        from concurrent.futures import ThreadPoolExecutor

        from medcoss_components.data.workers import _run_parallel

        taken = []
        jobs = (taken.append(job) or job for job in range(-9, 0))
        with ThreadPoolExecutor(2) as executor:
            results = _run_parallel(executor, abs, jobs, window=3)
            first = next(results)
            assert len(taken) == 3
            assert sorted([first, *results]) == [(-k, k) for k in range(9, 0, -1)]
            with pytest.raises(TypeError):
                list(_run_parallel(executor, abs, ["x"] * 3, window=2))

    def test_cores(self, monkeypatch):
        from medcoss_components.data import workers

        assert workers.available_cores() >= 1
        monkeypatch.delattr(os, "sched_getaffinity")
        assert workers.available_cores() == os.cpu_count()


def test_progress_counts_items_with_time_left(manifests, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("MEDCOSS_PROGRESS", raising=False)
    prepare(manifests["xray"], "xray", tmp_path, progress=True)
    text = capfd.readouterr().err
    assert "prepare xray" in text and "8/8" in text and "item/s" in text
