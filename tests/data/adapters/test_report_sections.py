"""Sections of reports whose headings are written in the many ways that radiologists write them."""

import pytest

from medcoss_components.data.adapters.report_sections import SectionRule, split_report
from medcoss_components.errors import InputError

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // pneumonia?

 COMPARISON:  None.

 FINDINGS:

 The lungs are clear.  Heart size
 is normal.

 IMPRESSION:

 No acute process.
"""


def test_findings_and_impression_of_a_usual_report():
    assert split_report(REPORT) == {
        "findings": "The lungs are clear. Heart size is normal.",
        "impression": "No acute process.",
    }


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("IMPRESSION: Normal.", {"impression": "Normal."}),
        (" Impression:\n Normal.", {"impression": "Normal."}),
        ("CONCLUSION: Normal.", {"impression": "Normal."}),
        ("FINDINGS AND IMPRESSION: Clear.", {"findings": "Clear."}),
        ("IMPRESSION AND FINDINGS: Clear.", {"findings": "Clear."}),
        ("IMPRESSION: First.\nADDENDUM: More.\nIMPRESSION: Last.", {"impression": "Last."}),
        ("FINDINGS: Kept.\nFINDINGS:\nIMPRESSION: Last.", {"findings": "Kept.", "impression": "Last."}),
        ("PA AND LATERAL CHEST RADIOGRAPHS: Clear.\nIMPRESSION: I.", {"findings": "Clear.", "impression": "I."}),
        ("CHEST, TWO VIEWS, ___:  Clear.", {"findings": "Clear."}),
        ("CHEST, PA: Views.\nFINDINGS: Found.", {"findings": "Found."}),
        ("EXAMINATION: CHEST.\nTYPE OF VIEWS: PA.\nIMPRESSION: I.", {"impression": "I."}),
        ("IMPRESSION: I.\nRECOMMENDATION(S): Repeat.", {"impression": "I."}),
        (
            "FINDINGS:\n LUNGS: Clear.\n CHEST: As above.\nIMPRESSION: I.",
            {"findings": "LUNGS: Clear. CHEST: As above.", "impression": "I."},
        ),
        (
            "IMPRESSION:  AP chest compared to ___:\n\n Low volumes.",
            {"impression": "AP chest compared to ___: Low volumes."},
        ),
        ("AP CHEST, 8:30 A.M., ___\n\nHISTORY: Cough.\n\nIMPRESSION: I.", {"impression": "I."}),
        ("AP CHEST, 8:30 A.M.:  Clear.", {"findings": "Clear."}),
        (
            "WET READ: ___ 8:45 PM\n Early.\n FINAL REPORT\n INDICATION: Cough.\n IMPRESSION:Late.",
            {"impression": "Late."},
        ),
        ("LUNGS: Clear.\nIMPRESSION: I.", {"impression": "I."}),
        ("INDICATION: Cough.\n\n First.\n\n Last one\n is here.\n\n", {"last_paragraph": "Last one is here."}),
        ("No headings at all.\r\n\r\nTwo.\r\n", {"last_paragraph": "Two."}),
        ("INDICATION:\n", {}),
        ("Findings are: none", {"last_paragraph": "Findings are: none"}),
    ],
)
def test_headings(report, expected):
    assert split_report(report) == expected


@pytest.mark.parametrize(
    ("rule", "parts", "expected"),
    [
        ({}, {"findings": "a b", "impression": "c"}, ("a b c", "")),
        ({"sections": ["impression", "findings"]}, {"findings": "a b", "impression": "c"}, ("c a b", "")),
        ({"sections": "impression"}, {"findings": "a b", "impression": "c"}, ("c", "")),
        ({}, {"findings": "", "impression": "c"}, ("c", "")),
        ({}, {"last_paragraph": "d"}, ("", "the report has no findings and no impression")),
        ({"last_paragraph": True}, {"last_paragraph": "d"}, ("d", "")),
        ({"last_paragraph": True}, {"findings": "a", "last_paragraph": "d"}, ("a", "")),
        ({"minimum_words": 3}, {"findings": "a", "impression": "b"}, ("", "fewer than 3 words")),
        ({"minimum_words": 2}, {"findings": "a", "impression": "b"}, ("a b", "")),
    ],
)
def test_choice_of_the_text(rule, parts, expected):
    assert SectionRule(**rule).choose(parts) == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"sections": []}, r"sections: must be some of findings, impression, each once, got \[\]"),
        ({"sections": ["findings", "findings"]}, "each once"),
        ({"sections": ["history"]}, r"got \['history'\]"),
        ({"sections": None}, "got None"),
        ({"last_paragraph": "yes"}, "last_paragraph: must be true or false, got 'yes'"),
        ({"minimum_words": 0}, "minimum_words: must be a whole number from 1, got 0"),
    ],
)
def test_settings_outside_their_range(rule, message):
    with pytest.raises(InputError, match=message):
        SectionRule(**rule)
