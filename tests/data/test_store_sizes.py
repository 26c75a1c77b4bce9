import numpy as np
import pytest

from medcoss_components.data.cases import resolve_case_preparation
from medcoss_components.data.manifest import Item, Manifest, read_manifest
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.preparation import resolve_preparation
from medcoss_components.data.store_sizes import estimate_cases, estimate_samples, folder_bytes, size_text
from medcoss_components.data.synthetic import synthetic_manifest


def estimate(manifest, measure=estimate_samples, split="training", shape=None, **settings):
    entry = get_modality(manifest.modality, input_shape=shape)
    resolve = resolve_preparation if measure is estimate_samples else resolve_case_preparation
    return measure(manifest, split, modality=entry, settings=resolve(entry, settings))


class TestSamples:
    def test_one_sample_per_item_needs_no_reading(self, tmp_path):
        items = tuple(Item(f"i{number}", image=tmp_path / "gone.png", group="g") for number in range(5))
        manifest = Manifest(
            name="n", version="1", modality="xray", licence="", source="", root=tmp_path, training=items
        )
        found = estimate(manifest, shape=(3, 8, 10))
        assert (found.bytes, found.items, found.tried, found.bad) == (5 * 80, 5, 0, 0)  # one grey byte per pixel

    def test_texts(self, tmp_path):
        manifest = read_manifest(synthetic_manifest(tmp_path, "report", count=7))
        assert estimate(manifest, shape=(14,)).bytes == 7 * 14 * 2

    def test_sub_volumes_are_counted_in_a_few_items(self, tmp_path):
        manifest = read_manifest(synthetic_manifest(tmp_path, "ct", count=6, shape=(12, 10, 10)))
        found = estimate(manifest, shape=(1, 4, 8, 8))
        assert (found.bytes, found.tried) == (6 * 3 * 4 * 8 * 8 * 2, 3)  # 12 slices are 3 sub-volumes of 4, int16

    def test_tiles(self, tmp_path):
        manifest = read_manifest(synthetic_manifest(tmp_path, "pathology", count=2, shape=(32, 48)))
        assert estimate(manifest, shape=(3, 8, 8), tile=[16, 16]).bytes == 2 * 6 * 3 * 8 * 8

    def test_nothing_to_estimate(self, tmp_path):
        manifest = read_manifest(synthetic_manifest(tmp_path, "ct", count=1, shape=(12, 10, 10)))
        assert estimate(manifest, split="testing").bytes == 0


FILES = 3 * 128  # headers of image, mask and positions


class TestCases:
    @pytest.fixture(autouse=True)
    def no_positions(self, monkeypatch):
        from medcoss_components.data import case_building

        nothing = np.empty((0, 4), np.int32)
        monkeypatch.setattr(case_building, "foreground_positions", lambda mask, seed: nothing)

    @pytest.fixture
    def volumes(self, tmp_path):
        path = synthetic_manifest(tmp_path, "ct", count=4, shape=(6, 10, 10), regions={"core": [1]})
        return read_manifest(path)

    def test_image_and_mask(self, volumes):
        found = estimate(volumes, estimate_cases, shape=(1, 4, 8, 8))
        assert (found.bytes, found.tried, found.bad) == (4 * (6 * 10 * 10 * 3 + FILES), 3, 0)  # int16 and uint8

    def test_spacing_counts(self, volumes):
        wanted = [2.5, 2.0, 2.0]  # half as many rows and columns as at 1 mm
        assert estimate(volumes, estimate_cases, shape=(1, 4, 4, 4), spacing=wanted).bytes == 4 * (
            6 * 5 * 5 * 3 + FILES
        )

    def test_damaged_items_count_as_the_others(self, volumes):
        volumes.training[0].image.write_bytes(b"no volume")
        found = estimate(volumes, estimate_cases, shape=(1, 4, 8, 8))
        assert (found.bytes, found.tried, found.bad) == (4 * (6 * 10 * 10 * 3 + FILES), 3, 1)

    def test_no_masks(self, tmp_path):
        manifest = read_manifest(synthetic_manifest(tmp_path, "ct", count=2, shape=(6, 10, 10)))
        found = estimate(manifest, estimate_cases, shape=(1, 4, 8, 8))
        assert (found.bytes, found.tried, found.bad) == (0, 2, 2)

    def test_a_class_instead_of_a_mask(self, tmp_path):
        items = (Item("i", image=tmp_path / "a.nii.gz", label=1, group="g"),)
        manifest = Manifest(name="n", version="1", modality="ct", licence="", source="", root=tmp_path, training=items)
        assert estimate(manifest, estimate_cases, shape=(1, 4, 8, 8)).bad == 1

    def test_lack_of_memory_is_no_bad_item(self, volumes, monkeypatch):
        from medcoss_components.data import masks

        def exhausted(*_, **__):
            raise MemoryError

        monkeypatch.setattr(masks, "read_labelled", exhausted)
        with pytest.raises(MemoryError):
            estimate(volumes, estimate_cases, shape=(1, 4, 8, 8))


class TestText:
    @pytest.mark.parametrize(
        ("count", "text"),
        [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123456, "123 kB"), (2.5e9, "2.5 GB"), (3e15, "3000 TB")],
    )
    def test_sizes(self, count, text):
        assert size_text(count) == text

    def test_folder(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros(3, np.uint8))
        (tmp_path / "below").mkdir()
        (tmp_path / "below" / "b").write_bytes(b"1234")
        assert folder_bytes(tmp_path) == (tmp_path / "a.npy").stat().st_size


def test_the_first_and_the_last_item_are_tried(tmp_path):
    manifest = read_manifest(synthetic_manifest(tmp_path, "ct", count=5, shape=(6, 10, 10), regions={"core": [1]}))
    for place in (0, 4):
        manifest.training[place].image.write_bytes(b"no volume")
    assert estimate(manifest, estimate_cases, shape=(1, 4, 8, 8)).bad == 2
