"""Panels, maps and sheets: what a pixel shows, which inputs are refused, what is kept private."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from medcoss_components.errors import InputError
from medcoss_components.tracking import maps, text_panels
from medcoss_components.tracking.figures import REMOVED, displayed, grey_window, plane
from medcoss_components.tracking.previews import buffer_map, contact_sheet, reconstruction_panel, text_panel

WORDS = ["The", "heart", "is", "large", "##st", "."]
MASKED = [False, True, False, False, False, True]
GUESSES = ["", "lung", "", "", "", "."]


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def has_colour(image, colour, tolerance=3):
    target = np.asarray(colour) * 255
    return bool((np.abs(image - target).max(axis=2) <= tolerance).any())


class TestPlane:
    def test_middle_slice_of_a_volume(self):
        volume = np.arange(5 * 2 * 3, dtype=np.float32).reshape(1, 5, 2, 3)
        np.testing.assert_array_equal(plane(volume)[..., 0], volume[0, 2])

    def test_channels_last(self):
        assert plane(np.zeros((3, 4, 6))).shape == (4, 6, 3)

    def test_tensor_of_half_precision(self):
        assert plane(torch.ones(1, 4, 6, dtype=torch.bfloat16, requires_grad=True)).dtype == np.float32

    @pytest.mark.parametrize("shape", [(4, 6), (2, 4, 6), (1, 1, 1, 4, 6)])
    def test_other_shapes(self, shape):
        with pytest.raises(InputError, match=f"received shape .{', '.join(map(str, shape))}"):
            plane(np.zeros(shape))


class TestWindow:
    def test_unit_range_stays(self):
        assert grey_window(np.array([0.2, np.nan, 0.4])) == (0.0, 1.0)

    def test_percentiles_elsewhere(self):
        low, high = grey_window(np.linspace(-1000, 1000, 2001))
        assert (low, high) == pytest.approx((-990, 990))

    def test_nothing_to_see(self):
        assert grey_window(np.array([np.nan])) == (0.0, 1.0)

    def test_constant_image(self):
        low, high = grey_window(np.full(4, -3.0))
        assert low == -3.0 < high

    def test_displayed(self):
        image = np.array([[[0.0], [5.0], [20.0], [np.nan]]])
        np.testing.assert_allclose(displayed(image, (0, 10))[0], [[0] * 3, [0.5] * 3, [1] * 3, REMOVED])


class TestReconstructionPanel:
    @pytest.mark.parametrize("shape", [(2, 3, 32, 48), (2, 1, 32, 48), (2, 1, 4, 32, 48)])
    def test_removed_patches_have_a_colour_of_their_own(self, shape, tmp_path):
        original = np.random.default_rng(0).random(shape).astype(np.float32)
        masked = original.copy()
        masked[..., :16, :16] = np.nan
        path = reconstruction_panel(original, masked, torch.from_numpy(original), tmp_path / "panel.png")
        assert has_colour(pixels(path), REMOVED)

    def test_one_window_a_row(self, tmp_path):
        """A reconstruction twice as bright as its original must look brighter, not be stretched to the same picture."""
        original = np.linspace(-2, 2, 32 * 32, dtype=np.float32).reshape(1, 1, 32, 32)
        image = pixels(reconstruction_panel(original, original, original + 2, tmp_path / "panel.png"))
        left, right = image[40:, : image.shape[1] // 3], image[40:, -image.shape[1] // 3 :]
        assert right.mean() > left.mean() + 30

    def test_given_window(self, tmp_path):
        zeros = np.zeros((1, 1, 32, 32), np.float32)
        image = pixels(reconstruction_panel(zeros, zeros, zeros, tmp_path / "panel.png", window=(-1, 1)))
        assert has_colour(image, (0.5, 0.5, 0.5))

    @pytest.mark.parametrize("shapes", [((1, 1, 4, 4), (1, 1, 4, 6), (1, 1, 4, 4)), ((0, 1, 4, 4),) * 3])
    def test_shapes_that_differ_or_no_sample(self, shapes, tmp_path):
        with pytest.raises(InputError, match="one shape with B > 0"):
            reconstruction_panel(*map(np.zeros, shapes), tmp_path / "panel.png")
        assert not list(tmp_path.iterdir())


class TestTextPanel:
    def test_continuation_pieces_join_visible_words(self):
        joined = text_panels._joined(text_panels.TextRow(WORDS, MASKED, GUESSES))
        assert [word for word, _, _ in joined] == ["The", "heart", "is", "largest", "."]

    def test_hidden_pieces_stay_apart_and_read_as_suffixes(self):
        row = text_panels.TextRow(["large", "##st", "##ly"], [False, True, False], [None, "##r", None])
        assert text_panels._joined(row) == [("large", False, ""), ("-st", True, "-r"), ("-ly", False, "")]

    def test_lines_break_before_the_edge(self):
        row = text_panels.TextRow(["word"] * 60, [False] * 60, [""] * 60)
        slots = text_panels._slots(row, True)
        assert slots[-1].line > 0
        assert max(slot.column + len(slot.word) for slot in slots) <= text_panels.LINE_WIDTH

    def test_heading_counts_right_guesses(self):
        assert text_panels._text_heading([text_panels.TextRow(WORDS, MASKED, GUESSES)]).startswith("1 of 2 hidden")

    @pytest.mark.parametrize("show_text", [True, False])
    def test_words_are_drawn_only_on_request(self, show_text, tmp_path, monkeypatch):
        drawn = drawn_texts(monkeypatch)
        text_panel([(WORDS, MASKED, GUESSES)], tmp_path / "text.png", show_text=show_text)
        assert any("heart" in text for text in drawn) == show_text
        assert any("lung" in text for text in drawn) == show_text
        assert {"✓", "✗"} <= {text[0] for text in drawn if text}

    def test_picture_without_words_does_not_depend_on_their_letters(self, tmp_path):
        first = text_panel([(WORDS, MASKED, GUESSES)], tmp_path / "a.png")
        others = [word if masked else "x" * len(word) for word, masked in zip(WORDS, MASKED, strict=True)]
        others[4] = "##xx"
        second = text_panel([(others, MASKED, GUESSES)], tmp_path / "b.png")
        assert first.read_bytes() == second.read_bytes()

    @pytest.mark.parametrize("rows", [[], [(["a", "b"], [True], ["c"])]])
    def test_no_text_or_unequal_lengths(self, rows, tmp_path):
        with pytest.raises(InputError, match="at least one text, and words, masked and predicted of equal length"):
            text_panel(rows, tmp_path / "text.png")

    def test_empty_text(self, tmp_path):
        assert text_panel([([], [], [])], tmp_path / "text.png").is_file()


def drawn_texts(monkeypatch):
    """Every text that matplotlib is asked to draw."""
    from matplotlib.text import Text

    drawn, draw = [], Text.draw

    def record(self, renderer, *args, **kwargs):
        drawn.append(self.get_text())
        return draw(self, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", record)
    return drawn


class TestBufferMap:
    POINTS = np.random.default_rng(0).normal(size=(30, 2))

    @pytest.mark.parametrize("clusters", [None, [0, 0, 1], np.arange(30) % 4])
    def test_exemplars_are_marked(self, clusters, tmp_path):
        path = buffer_map(self.POINTS, [3, 5, 29], clusters, tmp_path / "map.png")
        assert has_colour(pixels(path), (0xD5 / 255, 0x5E / 255, 0))

    def test_mask_and_indices_are_alike(self, tmp_path):
        mask = np.zeros(30, bool)
        mask[[3, 5]] = True
        first = buffer_map(self.POINTS, mask, None, tmp_path / "a.png")
        second = buffer_map(torch.from_numpy(self.POINTS), [3, 5], None, tmp_path / "b.png")
        assert first.read_bytes() == second.read_bytes()

    def test_background_is_thinned(self, tmp_path, monkeypatch):
        monkeypatch.setattr(maps, "MAX_MAP_POINTS", 10)
        drawn = drawn_texts(monkeypatch)
        buffer_map(self.POINTS, [], None, tmp_path / "map.png")
        assert "all 30 samples" in drawn

    def test_legend_counts(self, tmp_path, monkeypatch):
        drawn = drawn_texts(monkeypatch)
        buffer_map(self.POINTS, [1, 2, 3], [7, 7, 9], tmp_path / "map.png")
        assert "3 exemplars of 2 clusters" in drawn

    @pytest.mark.parametrize(
        ("points", "chosen", "clusters", "message"),
        [
            (np.zeros((4, 3)), [0], None, r"points2d must be \(N, 2\), received shape \(4, 3\)"),
            (np.zeros((4, 2)), [4], None, r"chosen must be indices in \[0, 4\)"),
            (np.zeros((4, 2)), [-1], None, "chosen must be indices"),
            (np.zeros((4, 2)), [0, 1], [0, 1, 2], r"2 or 4 entries, received shape \(3,\)"),
        ],
    )
    def test_shapes_that_do_not_fit(self, points, chosen, clusters, message, tmp_path):
        with pytest.raises(InputError, match=message):
            buffer_map(points, chosen, clusters, tmp_path / "map.png")


class TestContactSheet:
    @pytest.mark.parametrize("shape", [(5, 3, 16, 24), (17, 1, 16, 16), (2, 1, 4, 16, 16)])
    def test_images_and_volumes(self, shape, tmp_path):
        assert contact_sheet(np.zeros(shape), tmp_path / "sheet.png").is_file()

    @pytest.mark.parametrize(
        ("count", "options", "heading"),
        [
            (3, {}, "all 3 samples"),
            (50, {}, "40 of 50 samples"),
            (6, {"limit": 4}, "4 of 6 samples"),
            (3, {"total": 1200}, "3 of 1,200 samples"),
        ],
    )
    def test_heading_says_how_many(self, count, options, heading, tmp_path, monkeypatch):
        drawn = drawn_texts(monkeypatch)
        contact_sheet(np.zeros((count, 1, 8, 8)), tmp_path / "sheet.png", **options)
        assert heading in drawn

    def test_thinning_keeps_first_and_last(self, tmp_path, monkeypatch):
        drawn = drawn_texts(monkeypatch)
        contact_sheet([f"text{number}" for number in range(30)], tmp_path / "sheet.png", limit=3, show_text=True)
        assert [text for text in drawn if text.startswith("text")] == ["text0", "text14", "text29"]

    @pytest.mark.parametrize("show_text", [True, False])
    def test_texts_are_drawn_only_on_request(self, show_text, tmp_path, monkeypatch):
        drawn = drawn_texts(monkeypatch)
        contact_sheet(["No pneumothorax.", "Heart size normal."], tmp_path / "sheet.png", show_text=show_text)
        assert any("pneumothorax" in text for text in drawn) == show_text

    def test_nothing_to_show(self, tmp_path):
        with pytest.raises(InputError, match="at least one image or text"):
            contact_sheet([], tmp_path / "sheet.png")
