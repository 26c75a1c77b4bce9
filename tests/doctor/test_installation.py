import os
import subprocess
import sys
from importlib import metadata

import pytest

from medcoss_components.doctor import installation
from medcoss_components.doctor.findings import ERROR, OK, WARNING


def absent(name):
    raise metadata.PackageNotFoundError(name)


class TestPython:
    def test_this_one_fits(self):
        found = list(installation.check_python())
        assert [entry.status for entry in found] == [OK, OK] and "is required" in found[0].value

    def test_too_old(self, monkeypatch):
        monkeypatch.setattr(installation.platform, "python_version", lambda: "3.8.1")
        first = next(iter(installation.check_python()))
        assert first.status == ERROR and first.value.startswith("3.8.1, >=3.10")

    def test_not_installed(self, monkeypatch):
        monkeypatch.setattr(installation.metadata, "metadata", absent)
        assert next(iter(installation.check_python())).status == OK


class TestRequirements:
    @pytest.fixture
    def require(self, monkeypatch):
        monkeypatch.setattr(
            installation.metadata,
            "requires",
            lambda name: ["here>=2", "old>=2", "gone==1", "any", 'extra>=1; extra == "dicom"'],
        )
        versions = {"here": "2.1", "old": "1.9", "any": "0.1rc1"}
        monkeypatch.setattr(
            installation.metadata, "version", lambda name: versions[name] if name in versions else absent(name)
        )

    def test_each_is_compared(self, require):
        found = {entry.what: entry for entry in installation.check_requirements()}
        assert {name: entry.status for name, entry in found.items()} == {
            "here": OK,
            "old": ERROR,
            "gone": ERROR,
            "any": OK,
        }
        assert found["old"].value == "1.9, >=2 is required" and found["old"].advice == "pip install 'old>=2'"
        assert found["gone"].value == "not installed, ==1 is required"

    def test_run_from_a_folder(self, monkeypatch):
        monkeypatch.setattr(installation.metadata, "requires", absent)
        assert [entry.status for entry in installation.check_requirements()] == [WARNING]

    def test_this_environment(self):
        assert {entry.status for entry in installation.check_requirements()} == {OK}


class TestExtras:
    def test_absent_is_no_fault_and_broken_is(self, monkeypatch):
        def load(module):
            if module == "openslide":
                raise OSError("libopenslide.so.1: cannot open")

        monkeypatch.setattr(installation.metadata, "version", lambda name: "1" if name != "onnx" else absent(name))
        monkeypatch.setattr(installation, "import_module", load)
        found = {entry.what: entry for entry in installation.check_extras()}
        assert (found["onnx"].status, found["h5py"].status, found["openslide-python"].status) == (OK, OK, WARNING)
        assert "medcoss-components[export]" in found["onnx"].value
        assert found["openslide-python"].value == "1, cannot be imported (OSError)"


class TestTorch:
    @pytest.mark.parametrize(
        ("cuda", "hip", "text"), [("12.8", None, "CUDA 12.8"), (None, "6.1", "ROCm 6.1"), (None, None, "CPU build")]
    )
    def test_builds(self, monkeypatch, cuda, hip, text):
        import torch

        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip, raising=False)
        assert next(iter(installation.check_torch())).value.endswith(text)

    def test_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        (found,) = installation.check_torch()
        assert found.status == ERROR and found.value.startswith("cannot be imported (ModuleNotFoundError: ")

    def test_broken_torch_ends_no_doctor(self, tmp_path):
        (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open')")
        code = "from medcoss_components.cli import main; main()"
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", code, "doctor", "--manifest", "gone.json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 1 and "cannot be imported (OSError: libcudart.so.12: cannot open)" in done.stdout
        assert "Privacy, tracking and folders" in done.stdout and "not ready: see the errors" in done.stdout
