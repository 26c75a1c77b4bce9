"""Views: places in the image by hand, draws that follow from names and counters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcoss_components.data.contrastive_loader import ContrastiveLoader
from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.data.views import ContrastiveViews, PairTransform, ViewRecord
from medcoss_components.errors import InputError

WHOLE = (0.5, 0.5, 1.0, 1.0)
SHAPE = (3, 8, 18)


def record(flip=False, angle=0.0, box=WHOLE):
    return ViewRecord(torch.tensor([flip]), torch.tensor([angle]), torch.tensor([box]))


@pytest.fixture
def image():
    """One image of 4 rows and 6 columns whose smallest value is 0."""
    return torch.arange(24.0).reshape(1, 1, 4, 6)


class TestRecord:
    def test_nothing_drawn_changes_nothing(self, image):
        torch.testing.assert_close(record().apply(image), image)

    def test_mirror(self, image):
        torch.testing.assert_close(record(flip=True).apply(image), image.flip(3))

    @pytest.mark.parametrize(("angle", "turns"), [(90.0, 1), (180.0, 2), (-90.0, 3)])
    def test_turns_anticlockwise(self, angle, turns):
        square = torch.rand(1, 2, 5, 5)
        torch.testing.assert_close(record(angle=angle).apply(square), square.rot90(turns, (2, 3)), atol=1e-4, rtol=1e-4)

    def test_turn_is_one_in_pixels(self):
        """A bar of 3 pixels along the row of a wide image becomes one of 3 pixels along the column."""
        wide = torch.zeros(1, 1, 5, 11)
        wide[0, 0, 2, 4:7] = 1
        expected = torch.zeros(5, 11)
        expected[1:4, 5] = 1
        torch.testing.assert_close(record(angle=90.0).apply(wide)[0, 0], expected, atol=1e-4, rtol=0)

    def test_ground_is_the_smallest_value(self):
        view = record(angle=45.0).apply(torch.full((1, 1, 9, 9), -2.0) + torch.eye(9))
        assert float(view[0, 0, 0, 0]) == pytest.approx(-2.0, abs=1e-5)
        assert float(view.min()) >= -2.0001

    def test_box_is_scaled_to_the_whole(self, image):
        """The lower right quarter (2 rows, 3 columns); at double size the corners are those of its pixels."""
        view = record(box=(0.75, 0.75, 0.5, 0.5)).apply(image)[0, 0]
        quarter = image[:, :, 2:, 3:]
        middle = torch.nn.functional.interpolate(quarter, scale_factor=2, mode="bilinear")[0, 0]
        torch.testing.assert_close(view[1:3, 1:5], middle[1:3, 1:5])

    def test_mirror_is_of_the_box(self, image):
        box = (0.75, 0.75, 0.5, 0.5)
        torch.testing.assert_close(record(flip=True, box=box).apply(image), record(box=box).apply(image).flip(3))

    def test_each_sample_has_its_own(self, image):
        both = ViewRecord(torch.tensor([True, False]), torch.zeros(2), torch.tensor([WHOLE, WHOLE]))
        views = both.apply(image.repeat(2, 1, 1, 1))
        torch.testing.assert_close(views, torch.cat([image.flip(3), image]))
        assert both.rows(torch.tensor([1, 1, 0])).flip.tolist() == [False, False, True]

    def test_another_batch_size_refused(self, image):
        with pytest.raises(InputError, match="drawn for 1 samples, the batch holds 2"):
            record().apply(image.repeat(2, 1, 1, 1))


class TestDraws:
    def draw(self, count=2000, seed=0, **options):
        return ContrastiveViews(**options).draw(count, torch.Generator().manual_seed(seed))

    def test_as_moco_cxr(self):
        drawn = self.draw()
        assert 0.45 < drawn.flip.float().mean() < 0.55
        assert drawn.angle.abs().max() <= 10 and drawn.angle.std() == pytest.approx(20 / 12**0.5, rel=0.05)
        assert torch.equal(drawn.box, torch.tensor([WHOLE]).repeat(2000, 1))

    def test_crops_lie_inside(self):
        box = self.draw(crop=[0.3, 1.0]).box
        centre, side = box[:, :2], box[:, 2:]
        assert (centre - side / 2 >= -1e-6).all() and (centre + side / 2 <= 1 + 1e-6).all()
        area, ratio = side.prod(dim=1), side[:, 1] / side[:, 0]
        assert area.min() >= 0.22 and area.max() <= 1  # sides that are cut keep less than the drawn share
        assert ratio.min() >= 0.74 and ratio.max() <= 1.34 and area.mean() == pytest.approx(0.63, abs=0.03)

    def test_one_setting_leaves_the_other_draws(self):
        plain, cropped, still = self.draw(), self.draw(crop=[0.5, 1.0]), self.draw(degrees=0.0)
        assert torch.equal(plain.flip, cropped.flip) and torch.equal(plain.angle, cropped.angle)
        assert torch.equal(plain.flip, still.flip) and not still.angle.any()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"flip": 2}, r"flip must be a probability in \[0, 1\], received 2"),
            ({"degrees": -1}, r"degrees must be in \[0, 180\], received -1"),
            ({"crop": [0.9, 0.5]}, r"crop must be .* received \[0.9, 0.5\]"),
            ({"crop": [0.5]}, r"received \[0.5\]"),
            ({"crop": [0.0, 1.0]}, r"received \[0.0, 1.0\]"),
        ],
    )
    def test_settings_are_checked(self, options, message):
        with pytest.raises(InputError, match=message):
            ContrastiveViews(**options)


@pytest.fixture
def pairs():
    """``pairs(**options)``: the transform of tiny X-rays."""
    return lambda **options: PairTransform(**({"modality": "xray", "input_shape": SHAPE} | options))


class TestPairs:
    def batches(self, source, **options):
        return list(ContrastiveLoader(source, **({"batch_size": 5, "seed": 3} | options)))

    def test_keys_are_views_of_the_partners(self, fake_source, pairs):
        """Without mirror and turn a view is the image."""
        batch = self.batches(fake_source("xray", 7))[0]
        still = pairs(views={"flip": 0.0, "degrees": 0.0})
        queries, keys = still.pair(batch, "cpu")
        images = still.plain(batch["raw"], "cpu")
        torch.testing.assert_close(queries, images[:5])
        torch.testing.assert_close(keys, images[batch["partners"]])
        assert sorted(batch["rows"][batch["partners"]].tolist()) == list(range(5)) and images.shape == (5, 3, 8, 18)

    def test_two_views_differ_and_repeat(self, fake_source, pairs):
        source = fake_source("xray", 6)
        batch = {**self.batches(source)[0], "partners": torch.arange(5)}
        queries, keys = pairs().pair(batch, "cpu")
        again = pairs().pair(batch, "cpu")
        assert not torch.equal(queries, keys) and torch.equal(again[0], queries) and torch.equal(again[1], keys)
        for other in (pairs(seed=1).pair(batch, "cpu"), pairs().pair({**batch, "epoch": 1}, "cpu")):
            assert not torch.equal(other[0], queries)

    def test_standardised_before_the_view(self, fake_source, pairs):
        batch = next(iter(PretrainingLoader(fake_source("xray", 4), batch_size=4, shuffle=False)))
        transform = pairs(intensity={"standardise": "image"}, views={"degrees": 0.0})
        queries, _ = transform.pair(batch, "cpu")
        torch.testing.assert_close(queries.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(queries.std(dim=(1, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)
        assert transform.intensity == {"standardise": "image"}

    def test_ranks_make_the_rows_of_one_process(self, fake_source, pairs):
        """Query views are the own rows' ones; key views together are those of the whole batch."""
        source = fake_source("xray", 5)
        loader = ContrastiveLoader(source, batch_size=5, seed=3)
        plan = loader.sampler.plans(0)[0]
        whole = loader.reader[plan]
        queries, keys = pairs().pair(whole, "cpu")
        found = []
        for rank in range(2):
            loader.reader.rank, loader.reader.ranks = rank, 2
            batch = loader.reader[plan]
            assert batch["own"] == 3 - rank and len(np.unique(batch["rows"])) == len(batch["rows"])
            found.append(pairs().pair(batch, "cpu"))
        torch.testing.assert_close(torch.cat([pair[0] for pair in found]), queries)
        torch.testing.assert_close(torch.cat([pair[1] for pair in found]), keys)

    def test_only_pictures(self, pairs):
        with pytest.raises(InputError, match="modality ct: views are of 2D images, its samples have 3"):
            PairTransform(modality="ct")

    def test_given_views_are_taken(self, pairs):
        views = ContrastiveViews(degrees=3.0)
        assert pairs(views=views).views is views and pairs().views == ContrastiveViews()
