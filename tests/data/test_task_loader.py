import numpy as np
import pytest
import torch

from medcoss_components.data import task_loader
from medcoss_components.data.case_store import Case, cut_window
from medcoss_components.data.cases import CaseGeometry
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.task_loader import CaseLoader, ClassificationLoader, SegmentationLoader
from medcoss_components.errors import InputError

XRAY = get_modality("xray", input_shape=(3, 4, 5))
CT = get_modality("ct", input_shape=(1, 4, 6, 5))


class Samples:
    """Each sample holds its row everywhere."""

    modality = XRAY

    def __init__(self, count):
        self.ids = [f"s{row}" for row in range(count)]
        self.targets = np.arange(count) % 3

    def __len__(self):
        return len(self.ids)

    def gather(self, rows):
        return np.broadcast_to(np.asarray(rows, np.uint8)[:, None, None, None], (len(rows), *XRAY.stored_shape)).copy()


class Cases:
    """Volumes of different sizes whose voxels hold their own flat index; the mask marks a few voxels."""

    modality, regions = CT, {"organ": (1,), "rare": (2,)}
    shapes = [(9, 10, 11), (4, 6, 5), (8, 13, 7)]

    def __init__(self, shapes=None):
        self.sizes = [tuple(shape) for shape in shapes or self.shapes]
        self.ids = [f"c{row}" for row in range(len(self.sizes))]
        self.images = [np.arange(np.prod(shape), dtype=np.int16).reshape(1, *shape) for shape in self.sizes]
        self.masks = [np.zeros(shape, np.uint8) for shape in self.sizes]
        for mask in self.masks[::2]:
            mask[1, 2, :3], mask[-1, -1, -1] = 1, 2

    def __len__(self):
        return len(self.sizes)

    def shape(self, row):
        return self.sizes[row]

    def foreground(self, row):
        found = {name: np.argwhere(np.isin(self.masks[row], values)) for name, values in self.regions.items()}
        return {name: positions for name, positions in found.items() if len(positions)}

    def window(self, row, start, size):
        pair = ((self.images[row], -1024), (self.masks[row], 0))
        return tuple(cut_window(array, start, size, fill=fill) for array, fill in pair)

    def case(self, row):
        geometry = CaseGeometry(
            source_shape=self.sizes[row],
            source_spacing=None,
            resampled_shape=self.sizes[row],
            padding=((0, 0),) * 3,
        )
        names = {"id": self.ids[row], "group": "g", "image_path": None, "mask_path": None}
        return Case(image=self.images[row], mask=self.masks[row], geometry=geometry, **names)


@pytest.fixture
def as_rank(monkeypatch):
    """Let the loaders that are built next belong to one rank of several."""

    def set_rank(rank, ranks):
        monkeypatch.setattr(task_loader, "_ranks", lambda: {"rank": rank, "ranks": ranks})

    return set_rank


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def loaders():
    return {
        "classification": lambda: ClassificationLoader(Samples(11), batch_size=4, seed=5),
        "segmentation": lambda: SegmentationLoader(Cases(), batch_size=2, seed=5),
        "iterations": lambda: SegmentationLoader(Cases(), batch_size=2, iterations_per_epoch=5, seed=5),
        "cases": lambda: CaseLoader(Cases()),
    }


@pytest.mark.parametrize("name", loaders())
class TestContract:
    def test_lengths_and_descriptions(self, name):
        loader = loaders()[name]()
        batches = list(loader)
        assert (
            len(batches) == len(loader) == {"classification": 3, "segmentation": 2, "iterations": 5, "cases": 3}[name]
        )
        assert loader.modalities == {loader.dataset.modality.name: loader.dataset.modality}
        assert loader.batch_size == {"classification": 4, "cases": 1}.get(name, 2)
        for step, batch in enumerate(batches):
            assert (batch["epoch"], batch["step"], batch["modality"]) == (0, step, loader.dataset.modality.name)
            assert batch["ids"] == [loader.dataset.ids[row] for row in batch["indices"].tolist()]
            assert batch["own"] == len(batch["raw"]) == len(batch["target"]) == len(batch["rows"]) == batch["count"]

    def test_it_resumes_at_any_batch(self, name):
        loader = loaders()[name]()
        whole = [*loader, *loader]
        for start in range(len(whole)):
            again = loaders()[name]()
            again.set_position(*divmod(start, len(again)))
            batches = [*again, *again]
            for one, other in zip(batches, whole[start:], strict=False):
                same(one, other)

    def test_workers_give_the_same(self, name):
        here, there = loaders()[name](), loaders()[name]()
        there.num_workers = 1
        for one, other in zip(here, there, strict=True):
            same(one, other)


class TestClassification:
    def test_every_sample_once_with_its_target(self):
        batches = list(ClassificationLoader(Samples(11), batch_size=4))
        rows = torch.cat([batch["indices"] for batch in batches])
        assert sorted(rows.tolist()) == list(range(11)) and rows.tolist() != list(range(11))
        for batch in batches:
            assert torch.equal(batch["raw"][:, 0, 0, 0].long(), batch["indices"])
            assert torch.equal(batch["target"], batch["indices"] % 3)
            assert batch["target"].dtype == torch.int64

    def test_in_order(self):
        loader = ClassificationLoader(Samples(5), batch_size=2, shuffle=False)
        assert [batch["indices"].tolist() for batch in loader] == [[0, 1], [2, 3], [4]]

    def test_ranks_share_a_batch(self, as_rank):
        whole = list(ClassificationLoader(Samples(11), batch_size=4, seed=1))
        parts = []
        for rank in range(2):
            as_rank(rank, 2)
            parts.append(list(ClassificationLoader(Samples(11), batch_size=4, seed=1)))
        for batch, *own in zip(whole, *parts, strict=True):
            assert torch.equal(batch["indices"], torch.cat([part["indices"] for part in own]))
            assert all(part["count"] == batch["count"] for part in own)
            assert torch.cat([part["rows"] for part in own]).tolist() == batch["rows"].tolist()

    def test_empty_and_too_small(self, as_rank):
        with pytest.raises(InputError, match="holds 0 samples"):
            ClassificationLoader(Samples(0), batch_size=4)
        as_rank(0, 3)
        with pytest.raises(InputError, match=r"number of processes \(3\), received 2"):
            ClassificationLoader(Samples(5), batch_size=2)


class TestSegmentation:
    def test_each_case_once_or_equally_often(self):
        rows = torch.cat([batch["indices"] for batch in SegmentationLoader(Cases(), batch_size=2)])
        assert sorted(rows.tolist()) == [0, 1, 2]
        loader = SegmentationLoader(Cases(), batch_size=2, iterations_per_epoch=5)
        counts = [np.bincount(torch.cat([batch["indices"] for batch in loader])) for _ in range(6)]
        assert all(sorted(count) == [3, 3, 4] for count in counts)
        assert len({int(count.argmax()) for count in counts}) > 1

    def test_windows_lie_within_and_match_the_mask(self):
        cases = Cases()
        loader = SegmentationLoader(cases, batch_size=3, iterations_per_epoch=20, window=(3, 4, 5))
        for batch in loader:
            assert batch["raw"].shape == (3, 1, 3, 4, 5) and batch["raw"].dtype == torch.int16
            assert batch["target"].shape == (3, 3, 4, 5) and batch["target"].dtype == torch.uint8
            for row, raw, target in zip(batch["indices"], batch["raw"], batch["target"], strict=True):
                flat = raw[0].long()
                assert flat.min() >= 0
                assert np.array_equal(cases.masks[row].reshape(-1)[flat], target)

    def test_foreground_share(self):
        def hits(share):
            loader = SegmentationLoader(
                Cases([(30, 30, 30)]), batch_size=20, window=(1, 1, 1), iterations_per_epoch=10, foreground_share=share
            )
            return torch.cat([batch["target"].flatten() for batch in loader])

        assert (hits(0) > 0).float().mean() < 0.02
        always = hits(1)
        assert (always > 0).all()
        assert 0.35 < (always == 2).float().mean() < 0.65  # both regions, though one has a single voxel
        assert 0.35 < (hits(0.5) > 0).float().mean() < 0.65

    def test_all_places_occur(self):
        loader = SegmentationLoader(
            Cases([(4, 6, 7)]), batch_size=50, window=(4, 6, 5), iterations_per_epoch=2, foreground_share=0
        )
        starts = torch.cat([batch["raw"][:, 0, 0, 0, 0] for batch in loader])
        assert sorted(set(starts.tolist())) == [0, 1, 2]

    def test_a_window_larger_than_the_case(self):
        batch = next(iter(SegmentationLoader(Cases([(4, 6, 5)]), batch_size=1, window=(6, 6, 5))))
        assert (batch["raw"][0, 0, [0, -1]] == -1024).all() and (batch["raw"][0, 0, 1:-1] >= 0).all()

    def test_ranks_share_a_batch(self, as_rank):
        whole = next(iter(SegmentationLoader(Cases(), batch_size=3, seed=1)))
        parts = []
        for rank in range(2):
            as_rank(rank, 2)
            parts.append(next(iter(SegmentationLoader(Cases(), batch_size=3, seed=1))))
        for key in ("raw", "target", "indices"):
            assert torch.equal(whole[key], torch.cat([part[key] for part in parts]))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"window": (4, 4)}, r"window=\[4, 4\]: must be 3 positive sizes for ct"),
            ({"window": (4, 4, 0)}, r"window=\[4, 4, 0\]"),
            ({"foreground_share": 1.2}, "foreground_share=1.2"),
            ({"iterations_per_epoch": 0}, "iterations_per_epoch=0"),
        ],
    )
    def test_wrong_arguments(self, options, message):
        with pytest.raises(InputError, match=message):
            SegmentationLoader(Cases(), batch_size=1, **options)


class TestCases:
    def test_whole_cases_in_order(self):
        cases = Cases()
        for row, batch in enumerate(CaseLoader(cases)):
            assert (batch["row"], batch["count"], batch["ids"]) == (row, 1, [f"c{row}"])
            assert np.array_equal(batch["raw"][0], cases.images[row])
            assert np.array_equal(batch["target"][0], cases.masks[row])

    def test_ranks_take_turns(self, as_rank):
        rows = []
        for rank in range(2):
            as_rank(rank, 2)
            rows.append([batch["row"] for batch in CaseLoader(Cases())])
        assert [len(own) for own in rows] == [2, 2]
        assert sorted({*rows[0], *rows[1]}) == [0, 1, 2]
