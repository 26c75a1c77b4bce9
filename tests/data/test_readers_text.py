import gzip
import json

import pytest

from medcoss_components.data.readers import read_pubmed, read_texts
from medcoss_components.errors import InputError

PUBMED = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2019//EN" "https://example.invalid/p.dtd">
<PubmedArticleSet>
 <PubmedArticle><MedlineCitation><PMID Version="1">11</PMID><Article>
  <ArticleTitle>Opacity of <i>the</i> lung.</ArticleTitle>
  <Abstract>
   <AbstractText Label="AIM" NlmCategory="OBJECTIVE">To measure H<sub>2</sub>O
     in films.</AbstractText>
   <AbstractText Label="FINDINGS" NlmCategory="RESULTS">It was 3 &lt; 4.</AbstractText>
   <AbstractText Label="EMPTY"/>
  </Abstract>
  <Language>eng</Language></Article></MedlineCitation></PubmedArticle>
 <PubmedArticle><MedlineCitation><PMID Version="1">12</PMID><Article>
  <ArticleTitle>Plain.</ArticleTitle>
  <Abstract><AbstractText>One block.</AbstractText><CopyrightInformation>(c) X</CopyrightInformation></Abstract>
  <Language>fre</Language><Language>eng</Language></Article></MedlineCitation></PubmedArticle>
 <PubmedArticle><MedlineCitation><PMID Version="1">13</PMID><Article>
  <ArticleTitle>No abstract.</ArticleTitle></Article></MedlineCitation></PubmedArticle>
</PubmedArticleSet>
"""


@pytest.fixture(params=["a.xml", "a.xml.gz"])
def pubmed(tmp_path, request):
    path = tmp_path / request.param
    path.write_bytes(gzip.compress(PUBMED.encode()) if path.suffix == ".gz" else PUBMED.encode())
    return path


def test_pubmed_records(pubmed):
    first, second, third = read_pubmed(pubmed)
    assert (first.pmid, first.title, first.language, first.copyrighted) == ("11", "Opacity of the lung.", "eng", False)
    assert [(part.label, part.category, part.text) for part in first.sections] == [
        ("AIM", "OBJECTIVE", "To measure H2O in films."),
        ("FINDINGS", "RESULTS", "It was 3 < 4."),
    ]
    assert (second.language, second.copyrighted) == ("fre+eng", True)
    assert (third.title, third.sections, third.language, third.copyrighted) == ("No abstract.", (), "", False)


def test_pubmed_sections_as_texts(pubmed):
    records = list(read_texts(pubmed))
    assert [(record.id, record.label, record.group) for record in records] == [
        ("11-0", "OBJECTIVE", "11"),
        ("11-1", "RESULTS", "11"),
        ("12-0", None, "12"),
    ]
    assert records[2].copyrighted
    assert records[2].text == "One block."


@pytest.mark.parametrize("zipped", [False, True])
def test_truncated_pubmed_file(tmp_path, zipped):
    path = tmp_path / ("a.xml.gz" if zipped else "a.xml")
    content = gzip.compress(PUBMED.encode()) if zipped else PUBMED.encode()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError, match=f"{path.name}: cannot be read, it is truncated"):
        list(read_texts(path))


def test_other_xml(tmp_path):
    (tmp_path / "a.xml").write_text("<other/>")
    with pytest.raises(InputError, match="a.xml: holds no PubmedArticle element"):
        list(read_pubmed(tmp_path / "a.xml"))


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ",")])
def test_csv(tmp_path, name, separator):
    lines = ["study,report,class,patient", 's1," Two\nlines; clear. ",3,p1', "s2,Opacity.,,p1", ",No id.,1,"]
    content = ("\ufeff" + "\n".join(lines).replace(",", separator)).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    records = list(read_texts(path, id="study", text="report", label="class", group="patient"))
    assert [(record.id, record.text, record.label, record.group) for record in records] == [
        ("s1", "Two\nlines; clear.", "3", "p1"),
        ("s2", "Opacity.", None, "p1"),
        ("row-3", "No id.", "1", "row-3"),
    ]


def test_json_lines(tmp_path):
    rows = [{"text": "First.", "label": 2, "id": 7}, {"text": "Second.", "group": "p"}, {"text": None}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    records = list(read_texts(path))
    assert [(record.id, record.text, record.label, record.group) for record in records] == [
        ("7", "First.", 2, "7"),
        ("row-3", "Second.", None, "p"),
        ("row-5", "", None, "row-5"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,report\n1,Secret\n", "a.csv: no column 'text'; found 'id', 'report'. Name it with text="),
        ("a.jsonl", b'{"report": "Secret"}', "a.jsonl: no column 'text'; found 'report'"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "Secret', "a.jsonl: line 2 is not JSON"),
        ("a.jsonl", b'["Secret"]', "a.jsonl: line 1 must be a JSON object, got list"),
        ("a.csv", b"text\nok\nSecret \xff\n", "a.csv: line 3 is not UTF-8 .* CSV UTF-8"),
        ("a.csv", b"", "a.csv: the file is empty"),
        ("a.txt", b"Secret", "a.txt: unknown format; readable are .xml, .csv, .tsv, .jsonl, .ndjson"),
        (
            "a.csv.gz",
            gzip.compress(b"text\n" + bytes(range(32, 127)) * 50, mtime=0)[:60],
            "a.csv.gz: cannot be read, it is trunc",
        ),
    ],
)
def test_malformed_files_are_named_and_not_quoted(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_texts(tmp_path / name))
    assert "Secret" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"a.csv: no such file"):
        list(read_texts(tmp_path / "a.csv"))


def test_oversized_field(tmp_path, monkeypatch):
    monkeypatch.setattr("medcoss_components.data.readers_text.FIELD_LIMIT", 10)
    (tmp_path / "a.csv").write_text("text\n" + "x" * 50)
    with pytest.raises(InputError, match="a.csv: cannot be read"):
        list(read_texts(tmp_path / "a.csv"))


def test_unknown_column_argument(tmp_path):
    (tmp_path / "a.csv").write_text("text\nok")
    with pytest.raises(InputError, match=r"unknown columns \['body'\]; settable are id, text, label, group"):
        list(read_texts(tmp_path / "a.csv", body="x"))


def test_semicolons_of_a_spreadsheet(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffid;text;label\n1;one, two, three;2\n", encoding="utf-8")
    (record,) = read_texts(tmp_path / "a.csv")
    assert (record.id, record.text, record.label) == ("1", "one, two, three", "2")
