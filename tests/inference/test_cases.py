"""Cases are prepared as in training; one that fails says why."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError
from medcoss_components.inference.cases import InferenceLoader

GREY = (np.arange(96, dtype=np.uint16).reshape(8, 12) * 600).astype(np.uint16)


def test_image_for_classification(tmp_path, find):
    write_picture(tmp_path / "a.png", GREY)
    cases = find(tmp_path / "a.png", "xray")
    case = cases[0]
    assert case.raw.shape == (1, 1, 8, 12) and case.raw.dtype == torch.uint8 and case.error is None
    assert (cases.settings["fit"], len(cases)) == ("crop", 1)


def test_tiles_and_slabs_are_several_samples(tmp_path, find, nifti, ball):
    write_picture(tmp_path / "a.png", np.tile(GREY, (2, 2)))
    tiled = find(tmp_path / "a.png", "xray", preparation={"tile": [8, 12]})
    assert tiled[0].raw.shape == (4, 1, 8, 12)
    nifti(tmp_path / "v.nii.gz", ball)
    slabs = find(tmp_path / "v.nii.gz", preparation={"depth": "slabs"})
    assert slabs[0].raw.shape == (2, 1, 4, 6, 8)
    assert find(tmp_path / "v.nii.gz")[0].raw.shape == (1, 1, 4, 6, 8)  # as training does: the whole volume


def test_volume_for_segmentation(tmp_path, find, nifti, ball):
    nifti(tmp_path / "v.nii.gz", ball)
    case = find(tmp_path / "v.nii.gz", kind="segmentation", preparation={"spacing": [1.0, 1.0, 1.0]})[0]
    assert case.raw.shape == (1, 1, 20, 14, 18)
    assert (case.geometry.source_shape, case.geometry.source_spacing) == ((10, 14, 18), (2.0, 1.0, 1.0))


def test_texts(tmp_path, find, vocabulary):
    (tmp_path / "a.csv").write_text("text\nThe liver shows a small opacity\n\n  \n")
    cases = find(tmp_path / "a.csv", "report", vocabulary=vocabulary)
    assert cases[0].raw.shape == (1, 14) and int(cases[0].raw[0, 0]) == vocabulary.cls_id
    vocabulary.save(tmp_path / "v.json")
    assert torch.equal(find(tmp_path / "a.csv", "report", vocabulary=tmp_path / "v.json")[0].raw, cases[0].raw)
    assert cases[1].error == "the text is empty"


def test_a_damaged_file_says_why_without_its_name(tmp_path, find, nifti, ball):
    path = nifti(tmp_path / "DOE" / "v.nii.gz", ball)
    path.write_bytes(path.read_bytes()[:200])
    case = find(tmp_path)[0]
    assert case.raw is None and case.error.startswith("cannot be read, it is truncated") and "DOE" not in case.error


def test_an_unexpected_error_is_a_reason_too(tmp_path, find, nifti, ball, monkeypatch):
    nifti(tmp_path / "v.nii.gz", ball)
    cases = find(tmp_path)

    def broken(*arguments, **options):
        raise KeyError("DOE")

    monkeypatch.setattr("medcoss_components.inference.cases.read_volume", broken)
    assert cases[0].error == "KeyError while it was prepared"


def test_a_series_among_others(tmp_path, find, series, ball):
    series(tmp_path, ball, uid="1.2.1")
    for file in list(tmp_path.iterdir()):
        file.rename(tmp_path / f"x{file.name}")
    series(tmp_path, ball[::-1].copy(), uid="1.2.2")
    cases = find(tmp_path, kind="segmentation")
    assert [case.raw.shape[2:] for case in cases] == [(10, 14, 18), (10, 14, 18)]
    assert torch.equal(cases[0].raw, cases[1].raw.flip(2))


def test_wrong_arguments(tmp_path, find):
    write_picture(tmp_path / "a.png", GREY)
    (tmp_path / "a.csv").write_text("text\nwords\n")
    with pytest.raises(InputError, match="kind='boxes'"):
        find(tmp_path, "xray", kind="boxes")
    with pytest.raises(InputError, match="got None .--input PATH"):
        find(None, "xray")
    with pytest.raises(InputError, match="report is text and needs one"):
        find(tmp_path / "a.csv", "report")
    with pytest.raises(InputError, match="'tiles' is no setting"):
        find(tmp_path, "xray", preparation={"tiles": 1})


def test_loader(tmp_path, find):
    for number in range(11):
        write_picture(tmp_path / f"{number:02d}.png", GREY)
    cases = find(tmp_path, "xray")
    loader = InferenceLoader(dataset=cases)
    assert [len(batch) for batch in loader] == [8, 3]
    done = [source.id for source in cases.sources[:8]]
    (rest,) = loader.without(done)
    assert [case.source.source for case in rest] == ["08.png", "09.png", "10.png"]
    assert len(InferenceLoader(dataset=find(tmp_path, "xray", kind="segmentation"))) == 11
    empty = loader.without([source.id for source in cases.sources])
    assert len(empty) == 0 and list(empty) == []


def test_workers_give_the_same(tmp_path, find):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", np.roll(GREY, number))
    cases = find(tmp_path, "xray")
    here, there = (list(InferenceLoader(dataset=cases, batch_size=2, num_workers=count)) for count in (0, 1))
    for mine, yours in zip(here, there, strict=True):
        for one, other in zip(mine, yours, strict=True):
            assert one.source == other.source and torch.equal(one.raw, other.raw)
