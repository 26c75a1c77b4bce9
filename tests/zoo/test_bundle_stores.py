"""Preparing what a bundle's training will ask for: the same stores, once, from the command line too."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from medcoss_components import cli_prepare
from medcoss_components.data.case_store import CaseStore
from medcoss_components.data.manifest import read_manifest
from medcoss_components.data.store import open_store
from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.errors import InputError
from medcoss_components.files import read_json
from medcoss_components.zoo import bundle_stores
from medcoss_components.zoo.bundle_needs import bundle_needs, manifest_needs
from medcoss_components.zoo.bundle_stores import bundle_parser, describe_prepared, prepare_for_bundle

BUNDLES = Path(__file__).parents[2] / "bundles"
LIVER, CHEST = BUNDLES / "liver_tumor_ct_segmentation", BUNDLES / "chest_xray_classification"
CHAIN, PUBMED = BUNDLES / "medcoss_continual_pretraining", BUNDLES / "pubmed_abstract_classification"
SMALL = {"input_shape": [1, 8, 16, 16], "preparation_workers": 1}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    regions = {"liver": [1], "tumor": [2]}
    return synthetic_manifest(folder, "ct", count=3, validation=0, testing=1, shape=(16, 40, 40), regions=regions)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    classes = read_json(CHEST / "configs" / "train.json")["classes"]
    folder = tmp_path_factory.mktemp("films")
    return synthetic_manifest(folder, "xray", count=6, validation=3, testing=3, shape=(24, 20), classes=classes)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


class TestPrepare:
    def test_cases_once(self, volumes, tmp_path):
        rows = prepare_for_bundle(LIVER, volumes, tmp_path, SMALL)
        assert [(row.split, row.kind, row.samples, row.stored, row.made) for row in rows] == [
            ("training", "cases", 2, 3, True),
            ("validation", "cases", 1, 3, False),
            ("testing", "cases", 1, 1, True),
        ]
        store = CaseStore(rows[0].store, volumes.parent)
        assert store.index["preparation"]["spacing"] == [1.5, 0.8, 0.8]  # the bundle's own
        assert (rows[0].bytes, rows[1].store) == (sum(f.stat().st_size for f in store.path.iterdir()), store.path)
        lines = describe_prepared(rows)
        assert lines[0].startswith("training    2 of 3 cases, ") and str(rows[0].store) in lines[0]
        assert lines[1] == "validation  1 cases of the store of training"
        assert lines[-1].startswith("2 stores made, ")

        again = prepare_for_bundle(LIVER, volumes, tmp_path, SMALL)
        assert not any(row.made for row in again)
        assert describe_prepared(again)[-1].startswith("nothing to do")
        assert len(names(tmp_path)) == 2

    def test_the_training_finds_the_store(self, films, tmp_path):
        """What ``monai.bundle run`` builds, seen through the same config."""
        from monai.bundle import ConfigWorkflow

        settings = {"input_shape": [3, 16, 16], "preparation_workers": 1}
        rows = prepare_for_bundle(CHEST, films, tmp_path, settings)
        before = names(tmp_path)
        workflow = ConfigWorkflow(
            config_file=str(CHEST / "configs" / "train.json"), workflow_type="train", logging_file=False,
            data_manifest=str(films), store_dir=str(tmp_path), **settings,
        )  # fmt: skip
        workflow.initialize()
        datasets = [workflow.parser.get_parsed_content(f"{part}#dataset") for part in ("train", "validate", "test")]
        assert [dataset.store.path for dataset in datasets] == [row.store for row in rows]
        assert [len(dataset) for dataset in datasets] == [row.samples for row in rows] == [6, 3, 3]
        assert names(tmp_path) == before

    def test_settings_and_overlays_change_the_store(self, volumes, tmp_path):
        plain = prepare_for_bundle(LIVER, volumes, tmp_path, SMALL)
        spaced = prepare_for_bundle(LIVER, volumes, tmp_path, SMALL | {"preparation#spacing": [2.5, 2.0, 2.0]})
        demo = prepare_for_bundle(LIVER, volumes, tmp_path, SMALL, overlays=["demo"])
        assert plain[0].store != spaced[0].store == demo[0].store  # the demo's spacing is [2.5, 2, 2]

    @pytest.mark.parametrize("bundle", [CHAIN, BUNDLES / "medcoss_report_pretraining"])
    def test_texts_with_their_vocabulary(self, bundle, tmp_path):
        manifest = synthetic_manifest(tmp_path / "data", "report", count=30, validation=4)
        store_dir = tmp_path / "stores"
        rows = prepare_for_bundle(bundle, manifest, store_dir, {"vocabulary_size": 300})
        assert [(row.samples, row.made) for row in rows] == [(30, True), (4, True)]
        vocabulary = next(store_dir.glob("vocabulary-*-300/vocabulary.json"))
        given = prepare_for_bundle(bundle, manifest, store_dir, {"vocabulary": str(vocabulary)})
        assert [row.store for row in given] == [row.store for row in rows] and not given[0].made

    def test_a_chain_takes_the_settings_of_its_stage(self, tmp_path):
        manifest = synthetic_manifest(tmp_path / "data", "report", count=30)
        rows = prepare_for_bundle(CHAIN, manifest, tmp_path / "stores", overlays=["demo"])
        assert open_store(rows[0].store).index["preparation"] == {"max_length": 48}  # of the demo's first stage

    def test_a_modality_of_the_manifest(self, tmp_path):
        own = {"name": "own_scan", "dimension": 3, "input_shape": [1, 4, 8, 8], "intensity": "zscore"}
        manifest = synthetic_manifest(tmp_path / "data", own, count=2, validation=0, shape=(6, 8, 8))
        rows = prepare_for_bundle(CHAIN, manifest, tmp_path / "stores", {"preparation_workers": 1})
        assert rows[0].store.name.startswith("own_scan-training-")
        assert (rows[1].store, describe_prepared(rows)[1]) == (None, "validation  no items in the manifest")

    def test_what_is_left_out_is_told(self, tmp_path):
        manifest = synthetic_manifest(tmp_path / "data", "ct", count=6, validation=0, shape=(16, 8, 8))
        for item in read_manifest(manifest).training[:4]:
            item.image.unlink()
        settings = {"max_bad_share": 0.9, "preparation_workers": 1}
        rows = prepare_for_bundle(BUNDLES / "medcoss_ct_pretraining", manifest, tmp_path / "stores", settings)
        assert [name for name, _ in rows[0].left_out] == [f"training-{number:03d}" for number in range(4)]
        lines = describe_prepared(rows)
        assert lines[1].startswith("left out: training-000: ") and "no such file" in lines[1]
        assert lines[4] == f"left out: 1 more, all in {rows[0].store / 'report.json'}"
        assert rows[0].to_dict()["store"] == str(rows[0].store)

    def test_constant_samples_are_told(self):
        row = bundle_stores.PreparedSplit("training", samples=2, store=Path("s"), stored=2, constant=3, made=True)
        assert describe_prepared([row])[1:] == [
            "left out: 3 samples whose values are all equal",
            "1 store made, 0 B",
        ]


class TestErrors:
    @pytest.mark.parametrize(
        ("bundle", "settings", "message"),
        [
            (LIVER, {"max_epoch": 3}, "unknown setting max_epoch; did you mean max_epochs"),
            (CHEST, {"input_shape": [3, 16, 16]}, "holds ct, got xray"),
            (LIVER, {"regions": {"spleen": [7]}}, "no mask has a voxel of spleen"),
            (BUNDLES / "gone", {}, "train.json: no such config; .* has none"),
            (LIVER, {"preparation": {"spacings": [1, 1, 1]}}, "'spacings' is no setting"),
            (CHEST, {"preparation#size": [9, 9]}, r"nested key .*give the whole of it"),
        ],
    )
    def test_in_one_line(self, volumes, tmp_path, bundle, settings, message):
        with pytest.raises(InputError, match=message):
            prepare_for_bundle(bundle, volumes, tmp_path, {**SMALL, **settings})

    def test_unknown_overlay(self, volumes, tmp_path):
        with pytest.raises(InputError, match="nothing.json: no such config; .* has demo, evaluate, inference"):
            prepare_for_bundle(LIVER, volumes, tmp_path, overlays=["nothing"])

    def test_a_config_without_data(self):
        with pytest.raises(InputError, match="none of the parts train#dataset"):
            bundle_stores.bundle_splits({})

    def test_other_errors_pass(self, volumes, tmp_path):
        with pytest.raises(RuntimeError, match="segmentation_dataset"):
            prepare_for_bundle(LIVER, volumes, tmp_path, SMALL | {"validation_share": "much"})


class TestNeeds:
    def test_the_same_stores_and_sizes(self, volumes, tmp_path):
        settings = SMALL | {"preparation": {"spacing": None}}
        parser, manifest = bundle_parser(LIVER, volumes, tmp_path, settings), read_manifest(volumes)
        needs = bundle_needs(parser, manifest)
        assert [(need.split, need.there) for need in needs] == [("training", False), ("testing", False)]
        rows = prepare_for_bundle(LIVER, volumes, tmp_path, settings)
        for need, row in zip(needs, (rows[0], rows[2]), strict=True):  # every item was tried, so the sum is exact
            assert need.estimate().bytes == sum(file.stat().st_size for file in row.store.glob("*.npy"))
        assert [need.plan.path for need in needs] == [rows[0].store, rows[2].store]
        assert [need.there for need in bundle_needs(parser, manifest)] == [True, True]

    def test_samples_of_classes(self, films, tmp_path):
        parser = bundle_parser(CHEST, films, tmp_path, {"input_shape": [3, 16, 16]})
        needs = bundle_needs(parser, read_manifest(films))
        assert [(need.split, need.estimate().bytes) for need in needs] == [
            ("training", 6 * 256), ("validation", 3 * 256), ("testing", 3 * 256)
        ]  # fmt: skip
        rows = prepare_for_bundle(CHEST, films, tmp_path, {"input_shape": [3, 16, 16]})
        assert [need.plan.path for need in needs] == [row.store for row in rows]

    def test_whole_volumes(self, tmp_path):
        classes = read_json(BUNDLES / "covid_ct_classification" / "configs" / "train.json")["classes"]
        manifest = synthetic_manifest(tmp_path / "d", "ct", count=4, shape=(16, 8, 8), classes=classes)
        parser = bundle_parser(BUNDLES / "covid_ct_classification", manifest, tmp_path, SMALL)
        assert bundle_needs(parser, read_manifest(manifest))[0].estimate().bytes == 4 * 8 * 16 * 16 * 2

    def test_texts_are_not_looked_for(self, tmp_path):
        manifest = synthetic_manifest(tmp_path / "d", "report", count=5)
        parser = bundle_parser(BUNDLES / "medcoss_report_pretraining", manifest, tmp_path)
        assert bundle_needs(parser, read_manifest(manifest))[0].there is None

    def test_foreign_labels(self, tmp_path):
        manifest = synthetic_manifest(tmp_path / "d", "report", count=5, classes=["A", "B"])
        with pytest.raises(InputError, match="classes"):
            bundle_needs(bundle_parser(PUBMED, manifest, tmp_path), read_manifest(manifest))

    def test_without_a_bundle(self, volumes, films, tmp_path):
        cases = manifest_needs(read_manifest(volumes), tmp_path)
        assert [need.split for need in cases] == ["training", "testing"] and "-cases-" in cases[0].plan.name
        assert "-cases-" not in manifest_needs(read_manifest(films), tmp_path)[0].plan.name


class TestCommand:
    @pytest.fixture
    def call(self):
        app = typer.Typer()
        app.command("other")(lambda: None)
        cli_prepare.attach(app)
        return lambda *arguments: CliRunner().invoke(app, ["prepare", *map(str, arguments)])

    def test_lines(self, volumes, tmp_path, call):
        options = ("--bundle", LIVER, "--store-dir", tmp_path, "--set", "input_shape=[1,8,16,16]", "--workers", 1)
        done = call(volumes, *options)
        assert done.exit_code == 0 and done.stdout.splitlines()[-1].startswith("2 stores made")
        assert "nothing to do" in call(volumes, *options).stdout

    def test_json(self, volumes, tmp_path, call):
        options = ("--bundle", LIVER, "--store-dir", tmp_path, "--overlay", "demo", "--set", "input_shape=[1,8,16,16]")
        done = call(volumes, *options, "--json", "--workers", 1)
        rows = json.loads(done.stdout)
        assert [row["split"] for row in rows] == ["training", "validation", "testing"]
        assert read_json(Path(rows[0]["store"]) / "index.json")["preparation"]["spacing"] == [2.5, 2.0, 2.0]

    def test_typed_values(self):
        found = cli_prepare.typed_settings(["a=1", "b#c=[1,2]", "d=None", "e=text", "f=$@x + '/y'"])
        assert found == {"a": 1, "b#c": [1, 2], "d": None, "e": "text", "f": "$@x + '/y'"}
        with pytest.raises(InputError, match="key=value"):
            cli_prepare.typed_settings(["a"])

    def test_workers_are_a_setting(self, monkeypatch, capsys):
        seen = []
        monkeypatch.setattr(bundle_stores, "prepare_for_bundle", lambda *a, **k: seen.append((a, k)) or [])
        cli_prepare.prepare_and_print("b", "m", "s", workers=2)
        cli_prepare.prepare_and_print("b", "m")
        assert seen == [(("b", "m", "s"), {"settings": {"preparation_workers": 2}}), (("b", "m", None), {})]
        assert "nothing to do" in capsys.readouterr().out
