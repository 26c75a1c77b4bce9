"""The package imports nothing heavy, and every exported name is there."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import medcoss_components

HEAVY = ("torch", "numpy", "monai", "mlflow", "matplotlib", "SimpleITK", "pydicom", "nibabel", "pyarrow", "sklearn")


@pytest.mark.parametrize("module", ["medcoss_components", "medcoss_components.cli"])
def test_import_loads_nothing_heavy(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", medcoss_components.__all__)
def test_every_export_resolves(name):
    value = getattr(medcoss_components, name)
    assert name == "__version__" or value.__name__ == name
    if name != "__version__":
        assert inspect.getdoc(value), name


def test_dir_lists_the_exports():
    assert dir(medcoss_components) == sorted(medcoss_components.__all__)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="'Trainer'; it exports .*Pretrainer"):
        medcoss_components.Trainer  # noqa: B018


def test_version():
    from importlib.metadata import version

    assert medcoss_components.__version__ == version("medcoss-components")
