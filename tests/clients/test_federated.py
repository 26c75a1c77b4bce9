"""Federated averaging with MONAI's client: two sites, two rounds, over packed pre-training and fine-tuning bundles.

``MonaiAlgo`` (MONAI 1.6.1) takes ``train#trainer``, a ``SupervisedTrainer``, from train.json and ``validate#evaluator``
from train.json with evaluate.json merged over it. It sets ``bundle_root`` and ``max_epochs`` itself and lengthens
``max_epochs`` by ``local_epochs`` every round. Weights travel as a flat state dict; ``save_dict_key`` matters only for
nested checkpoint files, which there are none of.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject

from medcoss_components.data.synthetic import synthetic_manifest
from medcoss_components.errors import InputError
from medcoss_components.weights import read_weights

from .conftest import BRIEF, BUNDLES, TASK_BRIEF, Task, task_data

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore::UserWarning")


def make_client(name: str, bundle: Path, folder: Path, seed: int, **settings: Any) -> MonaiAlgo:
    manifest = synthetic_manifest(folder / "data", "xray", count=4 * (1 + seed), validation=2, seed=seed)
    data = {
        "data_manifest": str(manifest),
        "store_dir": str(folder / "store"),
        "precision": "float32",
        "num_workers": 0,
    }
    brief = {key: value for key, value in BRIEF.items() if key != "max_epochs"}
    client = MonaiAlgo(
        bundle_root=bundle.name,
        local_epochs=1,
        train_kwargs={**brief, **data, "output_dir": str(folder / "run"), **settings},
        eval_kwargs={**data, "batch_size": 4},
    )
    client.initialize({ExtraItems.CLIENT_NAME: name, ExtraItems.APP_ROOT: str(bundle.parent)})
    return client


def average(states: list[dict[str, torch.Tensor]], shares: list[float]) -> dict[str, torch.Tensor]:
    """Sum of ``share * tensor`` by name; shares sum to 1."""
    return {name: sum(share * state[name] for share, state in zip(shares, states, strict=True)) for name in states[0]}


def test_two_clients_two_rounds(unpacked: Path, tmp_path: Path) -> None:
    sites = []
    for number in range(2):
        copy = shutil.copytree(unpacked, tmp_path / f"site{number}" / unpacked.name)
        sites.append(make_client(f"site{number}", copy, tmp_path / f"site{number}", number, **{"train#handlers": []}))
    weights = read_weights(unpacked / "models" / "model.pt")
    losses = []
    for _ in range(2):
        differences, iterations = [], []
        for site in sites:
            site.train(ExchangeObject(weights=dict(weights)))
            answer = site.get_weights()
            differences.append(answer.weights)
            iterations.append(answer.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS])
        assert iterations == [1, 2]  # one epoch of 4 and of 8 samples in batches of 4
        for site, difference in zip(sites, differences, strict=True):
            local = site.trainer.network.state_dict()
            assert all(torch.allclose(weights[name] + change, local[name]) for name, change in difference.items())
            assert max(float(change.abs().max()) for change in difference.values()) > 0
        mean = average(differences, [count / sum(iterations) for count in iterations])
        weights = {name: weights[name] + mean[name] for name in weights}
        answers = [site.evaluate(ExchangeObject(weights=dict(weights))).metrics for site in sites]
        losses.append([answer["pretext_loss"] for answer in answers])
    assert torch.isfinite(torch.tensor(losses)).all() and losses[0] != losses[1]
    for site in sites:
        assert site.trainer.state.epoch == 2
        site.finalize()


def test_the_planned_learning_rate_is_not_stretched_in_silence(unpacked: Path, tmp_path: Path) -> None:
    """The plan covers the first round; a second one would train with a learning rate of 0."""
    client = make_client("site", unpacked, tmp_path, 0)
    weights = read_weights(unpacked / "models" / "model.pt")
    client.train(ExchangeObject(weights=dict(weights)))
    with pytest.raises(InputError, match=r"set train#handlers to \[\]"):
        client.train(ExchangeObject(weights=dict(weights)))


@pytest.mark.parametrize(
    "name", ["pubmed_abstract_classification", "gland_pathology_segmentation", "tuberculosis_xray_detection"]
)
def test_two_clients_fine_tune_a_task(name: str, make_task: Callable[[str], Task], tmp_path: Path) -> None:
    """Two rounds of a downstream bundle; the sites have data of their own and one common vocabulary."""
    task = make_task(name)
    sites = [_task_client(task, tmp_path / f"site{number}", number) for number in range(2)]
    weights = read_weights(task.run)
    scores = []
    for _ in range(2):
        differences, iterations = [], []
        for site in sites:
            site.train(ExchangeObject(weights=dict(weights)))
            answer = site.get_weights()
            differences.append(answer.weights)
            iterations.append(answer.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS])
        mean = average(differences, [count / sum(iterations) for count in iterations])
        assert max(float(change.abs().max()) for change in mean.values()) > 0
        weights = {key: weights[key] + mean[key] for key in weights}
        answers = [site.evaluate(ExchangeObject(weights=dict(weights))).metrics for site in sites]
        scores.append([answer[task.headline] for answer in answers])
    assert all(0 <= score <= 1 for scores_of_round in scores for score in scores_of_round)
    for site in sites:
        assert site.trainer.state.epoch == 2
        site.finalize()


def _task_client(task: Task, folder: Path, number: int) -> MonaiAlgo:
    bundle = task.unpack(folder)
    each = len(task.settings.get("classes", ())) or 2
    manifest = task_data(
        folder / "data", task.settings, count=max(4, each) * (1 + number), validation=each, seed=number
    )
    data = {"data_manifest": str(manifest), "store_dir": str(folder / "store"), "num_workers": 0}
    text = {"vocabulary": str(bundle / "models" / "vocabulary.json")} if task.dimension == 1 else {}
    brief = {key: value for key, value in TASK_BRIEF.items() if key in task.settings and key != "max_epochs"}
    own = {"output_dir": str(folder / "run"), "train#handlers": [], **text}
    client = MonaiAlgo(
        bundle_root=bundle.name,
        local_epochs=1,
        train_kwargs={**brief, **data, **own},
        eval_kwargs={**data, **text, "split": "validation", "precision": "float32"},
    )
    client.initialize({ExtraItems.CLIENT_NAME: f"site{number}", ExtraItems.APP_ROOT: str(folder)})
    return client


def test_two_clients_learn_by_contrast(tmp_path: Path) -> None:
    """Step 1 of MUSCLE, by its own config: two rounds, images of every site stay there."""
    sites = [_contrast_client(tmp_path / f"site{number}", number) for number in range(2)]
    weights = {name: value.clone() for name, value in sites[0].trainer.network.state_dict().items()}
    found = []
    for _ in range(2):
        states = []
        for site in sites:
            site.train(ExchangeObject(weights=dict(weights)))
            states.append(site.get_weights().weights)
        mean = average(states, [0.5, 0.5])
        weights = {name: weights[name] + mean[name] for name in weights}
        found.append([site.evaluate(ExchangeObject(weights=dict(weights))).metrics["top1"] for site in sites])
    assert all(0 <= share <= 1 for shares in found for share in shares)
    for site in sites:
        assert site.trainer.state.epoch == 2
        site.finalize()


def _contrast_client(folder: Path, number: int) -> MonaiAlgo:
    name = "muscle_xray_pretraining"
    shutil.copytree(BUNDLES / name, folder / name)
    manifest = synthetic_manifest(folder / "data", "xray", count=8, validation=4, seed=number)
    small = {"preset": "resnet_demo", "input_shape": [3, 32, 48], "precision": "float32", "batch_size": 4}
    places = {"store_dir": str(folder / "store"), "num_workers": 0, **small}
    own = {"manifests": [str(manifest)], "output_dir": str(folder / "run"), "queue_size": 8, "mlflow": False}
    client = MonaiAlgo(
        bundle_root=name,
        config_train_filename="configs/contrastive.json",
        config_evaluate_filename="configs/contrastive.json",
        train_kwargs={**places, **own},
        eval_kwargs={**places, **own},
    )
    client.initialize({ExtraItems.CLIENT_NAME: f"site{number}", ExtraItems.APP_ROOT: str(folder)})
    return client
