"""Manifests of one's own texts: CSV, JSON lines, PubMed XML; columns, labels, empty ones."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest

from medcoss_components.data.manifest_building import OwnData, build_manifest
from medcoss_components.data.manifest_summary import summary

SECRET = "MUSTERMANN"


def write_table(path, rows):
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def reasons(built):
    return dict(Counter(entry.reason for entry in built.left_out))


def test_csv(tmp_path):
    path = tmp_path / "notes.csv"
    rows = [
        {"id": f"n{n}", "text": f"finding {n // 2}", "label": "ab"[n % 2], "group": f"{SECRET}{n // 4}"}
        for n in range(24)
    ]
    write_table(path, [*rows, {"id": "e", "text": " ", "label": "a", "group": "x"}])
    data = OwnData(root=path, kind="csv", modality="report", split=(50, 0, 50))
    built = build_manifest(data, tmp_path / "manifest.json")
    assert built.manifest.counts == {"training": 12, "validation": 0, "testing": 12}
    assert [(entry.where, entry.reason) for entry in built.left_out] == [("notes.csv row 25", "the text is empty")]
    assert "24 items share their content" in built.notes[0]
    assert SECRET not in (tmp_path / "manifest.json").read_text() and built.manifest.intensity_unit == "text"


def test_json_lines_in_a_folder_with_a_table(tmp_path):
    lines = [json.dumps({"id": f"n{n}", "text": f"text {n}"}) for n in range(6)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "part.jsonl").write_text("\n".join(lines))
    (tmp_path / "in" / "readme.md").write_text("x")
    write_table(tmp_path / "in" / "labels.csv", [{"id": f"n{n}", "label": "ab"[n % 2]} for n in range(5)])
    data = OwnData(root=tmp_path / "in", kind="texts", modality="report", labels=tmp_path / "in" / "labels.csv")
    built = build_manifest(data, tmp_path / "manifest.json")
    assert sum(built.manifest.counts.values()) == 5
    assert reasons(built) == {"files ending in .md are not read here": 1, "no row in the table": 1}


def test_labels_that_miss_or_are_lists(tmp_path):
    rows = [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(6)]
    rows += [{"text": "odd", "label": ["a"]}, {"text": "none"}]
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = OwnData(root=tmp_path / "notes.jsonl", kind="texts", modality="report")
    built = build_manifest(data, tmp_path / "manifest.json")
    assert reasons(built) == {"its label is neither a text nor a number": 1, "no label": 1}


@pytest.mark.parametrize(("column", "groups"), [("group", 2), ("patient", 2), ("fall", 2), ("other", 6)])
def test_column_of_the_patient(tmp_path, column, groups):
    write_table(tmp_path / "t.csv", [{"text": f"t{n}", "label": "a", column: f"p{n // 3}"} for n in range(6)])
    named = {"group_column": "fall"} if column == "fall" else {}
    data = OwnData(root=tmp_path / "t.csv", kind="texts", modality="report", split=(50, 0, 50), **named)
    built = build_manifest(data, tmp_path / "manifest.json")
    assert sum(summary(built.manifest)["groups"].values()) == groups


def test_pubmed(tmp_path):
    article = (
        "<PubmedArticle><MedlineCitation><PMID>{0}</PMID><Article><ArticleTitle>T</ArticleTitle><Abstract>"
        '<AbstractText NlmCategory="METHODS">way {0}</AbstractText></Abstract></Article></MedlineCitation>'
        "</PubmedArticle>"
    )
    text = "".join(article.format(number) for number in range(3))
    (tmp_path / "all.xml").write_text(f"<PubmedArticleSet>{text}</PubmedArticleSet>")
    data = OwnData(root=tmp_path / "all.xml", kind="texts", modality="report")
    built = build_manifest(data, tmp_path / "manifest.json")
    assert summary(built.manifest)["labels"] == {
        "METHODS": {"training": [1, 1], "validation": [1, 1], "testing": [1, 1]}
    }
