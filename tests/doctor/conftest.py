"""The doctor's lines do not depend on the terminal that the tests run in."""

import pytest


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "118")
