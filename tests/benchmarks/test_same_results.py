"""Both sides compute the same: equal weights, noise and masks give equal losses, features, samples and clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inputs import embeddings
from reading import cut_volumes, radiographs, whole_volumes
from sides import OurSteps, StraightforwardSteps, full_length, made_up_store, our_network, straightforward_network
from straightforward.exemplars import choose
from straightforward.same_weights import load_ours
from straightforward.steps import distillation, embed_images, embed_texts

from medcoss_components.continual.distillation import distillation_loss
from medcoss_components.continual.mixup import ImageMixDraw, mix_images
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.transforms import to_model_input
from medcoss_components.engines.embedding import embed_source

CLOSE = {"rtol": 1e-5, "atol": 1e-4}
NAMES = ["report", "xray", "pathology", "ct", "mri"]


def _randomised(network):
    """Every parameter away from 0 and 1, so that one left out would show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture
def both(tiny_setting, tmp_path):
    def build(name, **arguments):
        setting = tiny_setting(name)
        ours = OurSteps(setting, tmp_path, network=_randomised(our_network(setting)), **arguments)
        return StraightforwardSteps(ours, rehearsal=arguments.get("rehearsal", False)), ours

    return build


@pytest.mark.parametrize("name", NAMES)
def test_pretext_losses_are_equal(both, name):
    straightforward, ours = both(name)
    inputs, model = ours.prepared(ours.batches[0]), straightforward.trainer.model.eval()
    expected = ours.network.eval()(inputs.inputs, **{**inputs.arguments, "depth_noise": None})
    if ours.setting.is_text:
        loss = model.text_loss(*full_length(ours, inputs))
    else:
        loss = model.image_loss(inputs.inputs, inputs.arguments["noise"])
    torch.testing.assert_close(loss, expected, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_three_training_steps_give_equal_losses(both, name):
    """The optimiser and its groups are the same as well."""
    straightforward, ours = both(name)
    for _ in range(3):
        assert straightforward.step() == pytest.approx(float(ours.step()), abs=1e-4)
    for theirs, mine in ((straightforward.trainer.model.text_norm, ours.network.text_embedding.norm),):
        torch.testing.assert_close(theirs.weight, mine.weight, **CLOSE)


@pytest.mark.parametrize("name", ["xray", "ct"])
def test_rehearsal_steps_give_equal_losses(both, name):
    straightforward, ours = both(name, rehearsal=True)
    load_ours(straightforward.trainer.model, _randomised(ours.network).state_dict())  # away from the teacher
    for _ in range(3):
        assert straightforward.step() == pytest.approx(float(ours.step()), abs=1e-4)


def test_distillation_is_equal_for_different_networks(tiny_setting):
    setting = tiny_setting("xray")
    student, teacher = _randomised(our_network(setting)).eval(), our_network(setting).eval()
    images, noise = torch.rand(4, 3, 8, 18), torch.rand(4, 6)
    weight, partners = torch.rand(4), torch.randperm(4)
    mixed = mix_images(images, images[partners], ImageMixDraw(weight=weight))
    features = [network.features(setting.entry, mixed, noise=noise, mask_ratio=0.75) for network in (student, teacher)]
    loss = distillation(straightforward_network(student).eval(), straightforward_network(teacher).eval(), mixed, noise)
    torch.testing.assert_close(loss, distillation_loss(*features), **CLOSE)


@pytest.mark.parametrize("name", ["report", "xray", "ct"])
def test_embeddings_are_equal(tiny_setting, tmp_path, name):
    setting = tiny_setting(name)
    network = _randomised(our_network(setting))
    store, vocabulary = made_up_store(setting, tmp_path, 6)
    inputs = to_model_input(store.modality, torch.from_numpy(store.gather(range(6))))
    plain = straightforward_network(network)
    pad_id = None if vocabulary is None else vocabulary.pad_id
    expected = embed_source(network, store, device=torch.device("cpu"), precision="float32", pad_id=pad_id)
    found = embed_images(plain, [inputs]) if pad_id is None else embed_texts(plain, [(inputs, inputs != pad_id)])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def _all_samples(data):
    ours = to_model_input(data.store.modality, torch.from_numpy(data.store.gather(range(len(data.store)))))
    return torch.stack([data.files[number] for number in range(len(data.files))]), ours


def test_cut_volumes_are_read_alike(tmp_path):
    files, store = _all_samples(cut_volumes(tmp_path, 3, get_modality("ct", input_shape=(1, 6, 32, 48))))
    torch.testing.assert_close(files, store)


def test_sub_volumes_of_whole_volumes_are_read_alike(tmp_path):
    entry = get_modality("ct", input_shape=(1, 4, 24, 24))
    files, store = _all_samples(whole_volumes(tmp_path, 4, entry, side=48, slices=8))
    assert len(files) == 4
    torch.testing.assert_close(files, store, atol=1e-3, rtol=0)  # the store rounds to whole HU


def test_radiographs_are_read_alike(tmp_path):
    files, store = _all_samples(radiographs(tmp_path, 2, get_modality("xray", input_shape=(3, 32, 32)), side=80))
    assert (files - store).abs().mean() < 2 / 255  # one resizes bytes, the other floats


def test_clusters_are_as_good():
    from exemplars import inertia

    from medcoss_components.continual.exemplars import select_exemplars

    features = embeddings(600, 16, np.random.default_rng(0), subjects=12)
    chosen, value = choose(features, 12, 3)
    ours = select_exemplars(features, count=36, clusters=12, seed=0)
    assert len(chosen) == len(ours) == 36
    assert inertia(features, ours.assignment) <= 1.1 * value
