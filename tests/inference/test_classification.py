"""Tables of class probabilities, resuming, and cases that fail."""

from __future__ import annotations

import csv
import json
import weakref

import numpy as np
import pytest
import torch

from medcoss_components.data.writers import write_picture
from medcoss_components.errors import InputError
from medcoss_components.inference.outputs import CasesFailedError


@pytest.fixture
def pictures(tmp_path):
    """A dark, a bright and a mixed picture of random levels, 8 x 12."""
    folder, generator = tmp_path / "in", np.random.default_rng(0)
    folder.mkdir()
    for name, low, high in (("a", 0, 20), ("b", 200, 255), ("c", 0, 255)):
        write_picture(folder / f"{name}.png", generator.integers(low, high, (8, 12), dtype=np.uint8))
    return folder


def table(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_probabilities(pictures, classifier, tmp_path, capsys):
    predictor = classifier(pictures, case_options={"preparation": {"percentiles": None}})
    predictor.run()
    rows = table(tmp_path / "out" / "predictions.csv")
    assert list(rows[0]) == ["id", "source", "predicted", "prob_dark", "prob_bright"]
    assert [row["source"] for row in rows] == ["a.png", "b.png", "c.png"]
    for row, case in zip(rows, predictor.cases, strict=True):
        mean = float((case.raw.float() / 255).mean())
        assert float(row["prob_bright"]) == pytest.approx(1 / (1 + np.exp(-4 * mean)), abs=2e-6)
        assert float(row["prob_dark"]) + float(row["prob_bright"]) == pytest.approx(1, abs=2e-6)
    assert rows[1]["predicted"] == "bright"
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (document["task"], document["classes"], document["failed"]) == ("classification", ["dark", "bright"], [])
    assert document["cases"][1]["predicted"] == "bright" and predictor.rows[rows[0]["id"]] == document["cases"][0]
    assert f"predicted 3 of 3 cases -> {tmp_path}/out/predictions.csv" in capsys.readouterr().out


def test_several_samples_are_averaged(tmp_path, classifier):
    (tmp_path / "in").mkdir()
    half = np.zeros((8, 24), np.uint8)
    half[:, 12:] = 255
    write_picture(tmp_path / "in" / "a.png", half)
    predictor = classifier(tmp_path / "in", case_options={"preparation": {"tile": [8, 12], "percentiles": None}})
    predictor.run()
    (row,) = predictor.rows.values()
    assert row["prob_bright"] == pytest.approx((0.5 + 1 / (1 + np.exp(-4))) / 2, abs=1e-6)


def test_texts_are_not_written(tmp_path, classifier, vocabulary):
    from medcoss_components.data.task_inputs import TaskTransform

    (tmp_path / "in.csv").write_text("id,text\nr1,The liver shows a small opacity\nr2,The heart is enlarged\n")
    options = {"vocabulary": vocabulary}
    transform = TaskTransform(modality="report", input_shape=(14,))
    predictor = classifier(tmp_path / "in.csv", "report", case_options=options, preprocessing=transform)
    predictor.run()
    assert [row["source"] for row in predictor.rows.values()] == ["in.csv:r1", "in.csv:r2"]
    for file in (tmp_path / "out").iterdir():
        assert "opacity" not in file.read_text()


def test_source_names_can_be_left_out(pictures, classifier, tmp_path):
    (pictures / "d.png").write_bytes(b"damaged")
    with pytest.raises(CasesFailedError):
        classifier(pictures, source_name=False).run()
    for file in (tmp_path / "out").iterdir():
        assert ".png" not in file.read_text()
    assert list(table(tmp_path / "out" / "failures.csv")[0]) == ["id", "reason"]


def test_bad_cases_do_not_stop_the_others(pictures, classifier, tmp_path):
    (pictures / "b.png").write_bytes(b"damaged")
    (pictures / "d.png").write_bytes(b"")
    with pytest.raises(CasesFailedError, match="2 of 4 cases failed, the first .* because: cannot be read"):
        classifier(pictures).run()
    assert [row["source"] for row in table(tmp_path / "out" / "predictions.csv")] == ["a.png", "c.png"]
    failed = table(tmp_path / "out" / "failures.csv")
    assert [(row["source"], row["reason"][:17]) for row in failed] == [
        ("b.png", "cannot be read, i"),
        ("d.png", "the file is empty"),
    ]
    write_picture(pictures / "b.png", np.arange(96, dtype=np.uint8).reshape(8, 12))
    (pictures / "d.png").unlink()
    again = classifier(pictures)
    again.run()
    assert len(again.rows) == 3 and again.network.calls == 1
    assert not (tmp_path / "out" / "failures.csv").exists()


def test_failures_need_not_raise(pictures, classifier, tmp_path):
    (pictures / "b.png").write_bytes(b"damaged")
    predictor = classifier(pictures, raise_on_failure=False)
    predictor.run()
    assert len(predictor.failures) == 1


def test_finished_cases_are_not_repeated(pictures, classifier, tmp_path):
    classifier(pictures).run()
    before = (tmp_path / "out" / "predictions.csv").read_text()
    again = classifier(pictures)
    again.run()
    assert again.network.calls == 0 and (tmp_path / "out" / "predictions.csv").read_text() == before


def test_an_interrupted_run_goes_on(pictures, classifier, tmp_path):
    """The second line is cut in the middle, as a killed process may leave it."""
    classifier(pictures, batch_size=1).run()
    before = (tmp_path / "out" / "predictions.csv").read_text()
    path = tmp_path / "out" / "finished.jsonl"
    path.write_text(path.read_text()[: len(path.read_text().splitlines()[0]) + 20])
    again = classifier(pictures, batch_size=1)
    again.run()
    assert again.network.calls == 2 and (tmp_path / "out" / "predictions.csv").read_text() == before


def test_other_settings_are_refused(pictures, classifier, tmp_path):
    classifier(pictures).run()
    with pytest.raises(InputError, match="begun with other settings .*classes: .*'bright'.* -> .*'light'"):
        classifier(pictures, classes=["dark", "light"]).run()
    other = classifier(pictures)
    other.network.slope.data += 1
    with pytest.raises(InputError, match="network: "):
        other.run()


def test_one_bad_sample_of_a_list_is_found(pictures, classifier, tmp_path):
    """The network fails on the bright picture; the two others of the list are predicted, after what the failed call
    held is gone: on a GPU it may be the memory that they need."""

    class Picky(torch.nn.Module):
        def forward(self, inputs):
            left.extend(activation for activation in activations if activation() is not None)
            activation = 2 * inputs
            activations.append(weakref.ref(activation))
            if inputs.flatten(1).mean(dim=1).max() > 0.7:
                raise RuntimeError(f"too bright in {pictures}/b.png")
            return torch.zeros(len(inputs), 2)

    activations, left = [], []
    predictor = classifier(pictures, network=Picky(), case_options={"preparation": {"percentiles": None}})
    with pytest.raises(CasesFailedError, match="1 of 3 cases failed"):
        predictor.run()
    assert [failure[2] for failure in predictor.failures] == ["RuntimeError: too bright in (file)"]
    assert len(predictor.rows) == 2 and len(activations) == 4 and left == []


def test_a_full_disk_stops(pictures, classifier, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    predictor = classifier(pictures)
    monkeypatch.setattr(predictor, "predict", full)
    with pytest.raises(OSError, match="No space left"):
        predictor.run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["a", "b", "c"]}, "3 names for a network with 2 outputs"),
        ({"network": "nan"}, "output is not finite"),
    ],
)
def test_network_that_does_not_fit(pictures, classifier, options, message):
    if options.get("network") == "nan":
        options = {"network": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(288, 2))}
        options["network"][1].weight.data.fill_(float("nan"))
    with pytest.raises(CasesFailedError, match=message):
        classifier(pictures, **options).run()


def test_cases_of_another_kind(pictures, classifier):
    with pytest.raises(InputError, match="must be of kind classification, are segmentation"):
        classifier(pictures, case_options={"kind": "segmentation"})


def test_left_out_files_are_listed(tmp_path, classifier, dicom_file, capsys):
    picture = np.arange(96, dtype=np.uint16).reshape(8, 12)
    dicom_file[0](tmp_path / "in" / "a.dcm", picture, Modality="DX")
    dicom_file[0](tmp_path / "in" / "b.dcm", picture, Modality="US")
    classifier(tmp_path / "in").run()
    (row,) = table(tmp_path / "out" / "skipped.csv")
    assert row["source"] == "b.dcm" and "'US'" in row["reason"]
    assert "left out 1 (skipped.csv)" in capsys.readouterr().out
