"""Identifiers of patients in paths and messages."""

from __future__ import annotations

import pytest

from medcoss_components.data.identifiers import hash_identifier
from medcoss_components.data.private_names import KnownIdentifiers, name_parts

SALT = "a salt for tests only"


@pytest.fixture
def known():
    found = KnownIdentifiers(SALT)
    found.add("P-0017", ["Mustermann", "2020-01-31", "20200131"])
    found.add("3", ["Roe"])
    return found


def test_parts():
    assert name_parts("p_007/Ärzte-CT3.nii.gz") == ("p", "7", "ärzte", "ct", "3", "nii", "gz")
    assert name_parts("0") == ("0",) and name_parts("__") == ()


@pytest.mark.parametrize(
    ("text", "patient", "occurs"),
    [
        ("scans/mustermann_max/1.dcm", "", True),
        ("scans/Mustermanns/1.dcm", "", False),
        ("p17/1.dcm", "", False),  # "p", "17": three characters, and whose path this is nobody says
        ("p17/1.dcm", "P-0017", True),
        ("p_0017/1.dcm", "3", False),
        ("exam 2020-01-31/1.dcm", "", True),
        ("20200131.dcm", "", True),
        ("3.png", "3", True),
        ("3.png", "P-0017", False),
        ("13.png", "3", False),
        ("roe/1.png", "3", True),
        ("roe/1.png", "", False),
        ("", "3", False),
    ],
)
def test_where_identifiers_occur(known, text, patient, occurs):
    assert known.occurs(text, patient) is occurs


def test_hashes_stand_in_their_place(known):
    group = hash_identifier("P-0017", SALT)
    assert known.masked("MUSTERMANN/ct of 2020_01_31.nii") == f"{group}/ct of {group}.nii"
    assert known.masked("p17/3", "3") == f"p17/{hash_identifier('3', SALT)}"
    assert known.masked("nothing here") == "nothing here"


def test_the_longest_identifier_goes_first(known):
    known.add("Mustermann-Roe")
    assert known.masked("mustermann_roe.png") == f"{hash_identifier('Mustermann-Roe', SALT)}.png"


def test_one_name_of_two_patients(known):
    known.add("other", ["Mustermann"])
    owners = sorted(hash_identifier(patient, SALT) for patient in ("P-0017", "other"))
    assert known.masked("mustermann") == owners[0]
    assert known.masked("mustermann", "other") == hash_identifier("other", SALT)


def test_nobody_is_known():
    assert not KnownIdentifiers(SALT).occurs("mustermann", "mustermann")
