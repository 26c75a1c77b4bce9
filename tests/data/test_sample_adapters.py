"""Parts of the sample's adapters: sentences, crops, windows, boxes."""

import numpy as np
import pytest

from medcoss_components.data.adapters.sample_report import split_sentences, usable_sections
from medcoss_components.data.adapters.sample_volumes import crop_to_subject, in_plane_windows
from medcoss_components.data.adapters.sample_xray import remove_table, split_picture, square_crops, to_sixteen_bits
from medcoss_components.data.readers_text import PubmedRecord, PubmedSection
from medcoss_components.data.synthetic import ellipse_mask


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two.", ["One.", "Two."]),
        ("It was 3.5 mm vs. 4 mm.", ["It was 3.5 mm vs. 4 mm."]),
        ("P. Smith et al. Found it.", ["P. Smith et al. Found it."]),
        ("It ended.Next began.", ["It ended.", "Next began."]),
        ("See it (n = 3). 'Quoted' text?", ["See it (n = 3).", "'Quoted' text?"]),
        ("", []),
    ],
)
def test_split_sentences(text, expected):
    assert split_sentences(text) == expected


@pytest.mark.parametrize(
    ("language", "copyrighted", "count"),
    [("eng", False, 2), ("eng", True, 0), ("ger", False, 0), ("eng+spa", False, 0)],
)
def test_usable_sections(language, copyrighted, count):
    sections = (PubmedSection("A", "METHODS", "text a"), PubmedSection("B", "UNASSIGNED", "text b"))
    found = usable_sections(PubmedRecord("1", "title", sections, language, copyrighted))
    assert found == [("text a", "METHODS"), ("text b", "")][:count]


def test_square_crops_cover_every_pixel():
    picture = np.arange(23 * 17, dtype=np.uint16).reshape(23, 17)
    crops = list(square_crops(picture, sizes=[8, 17, 40], overlap=0.5))
    assert {crop.shape for _, crop in crops} == {(8, 8), (17, 17)}
    assert len({name for name, _ in crops}) == len(crops)
    seen = np.unique(np.concatenate([crop.ravel() for _, crop in crops if crop.shape == (8, 8)]))
    assert len(seen) == picture.size


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("which", ["first", "second"])
def test_split_picture_parts_join_again(axis, which):
    picture = np.arange(6 * 8).reshape(6, 8)
    parts = dict(split_picture(picture, axis, 4, which))
    order = ("a", "b") if which == "second" else ("b", "a")
    np.testing.assert_array_equal(np.concatenate([parts[name] for name in order], axis=axis), picture)


def test_windows_are_square_and_reach_all_borders():
    array = np.zeros((3, 30, 45))
    windows = list(in_plane_windows(array, 20, 12))
    assert windows[0][0] == "whole"
    assert [corner for _, corner, _ in windows[1:]] == [(row, column) for row in (0, 10) for column in (0, 8, 17, 25)]
    assert all(window.shape == (3, 20, 20) for _, _, window in windows[1:])


def test_box_of_the_subject_ignores_specks():
    array = np.full((40, 40, 40), -1000)
    array[10:30, 5:20, 8:33] = 40
    array[39, 39, 39] = 40
    cropped, corner = crop_to_subject(array, above=-400, margin=2)
    assert corner == (8, 3, 6)
    assert cropped.shape == (24, 19, 29)


def test_sixteen_bits_stretch_the_middle_99_percent():
    picture = np.linspace(100, 200, 1000).reshape(20, 50)
    stretched = to_sixteen_bits(picture)
    assert stretched.dtype == np.uint16
    assert (stretched.min(), stretched.max()) == (0, 65535)
    assert (to_sixteen_bits(np.full((4, 4), 7)) == 0).all()


@pytest.mark.parametrize("width", [40, 41])
def test_remove_table_keeps_the_body(width):
    shape = (3, 44, width)
    array = np.full(shape, -1000, np.int16)
    body = ellipse_mask(shape, (1, 18, 20), (1e6, 14, 16))
    array[body] = 30
    array[:, 38:40] = 300
    cleaned = remove_table(array)
    assert (cleaned[:, 36:] == -1000).all()
    assert (cleaned[body] == 30).mean() > 0.95
