"""What a step draws, compared with explicit loops, and that it does not depend on how ranks share a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcoss_components.continual.mixup import draw_partners
from medcoss_components.data.sampler import BatchPlan, BatchReader
from medcoss_components.data.transforms import draw_augmentation, to_model_input
from medcoss_components.engines.batches import StepSettings, settings_for, step_batch
from medcoss_components.errors import InputError
from medcoss_components.randomness import generator_for

CPU = torch.device("cpu")
INDICES = np.array([6, 1, 4, 0, 7])
PLAN = BatchPlan(source=1, epoch=2, step=3, indices=INDICES)
SEED = 11
IMAGES = ("xray", "pathology", "ct", "mri")


@pytest.fixture
def settings(vocabulary, tiny_sizes):
    """``settings(**changes)`` for the tiny network."""
    sizes = {"depth": 2, "patch_2d": tiny_sizes["patch_2d"], "patch_3d": tiny_sizes["patch_3d"]}
    return lambda **changes: StepSettings(**{"seed": SEED, "vocabulary": vocabulary, **sizes, **changes})


@pytest.fixture
def build(fake_source, settings):
    """``build(modality, rank, ranks, **changes)``: the batch of one rank."""

    def make(name, rank=0, ranks=1, current=1, **changes):
        source = fake_source(name, 8)
        batch = BatchReader([source, source], current=current, seed=SEED, rank=rank, ranks=ranks)[PLAN]
        return step_batch(batch, modality=source.modality, settings=settings(**changes), device=CPU)

    return make


def draws(purpose):
    """The generator that the batch must have used."""
    return generator_for(SEED, purpose, PLAN.source, PLAN.epoch, PLAN.step)


def partners():
    return draw_partners(len(INDICES), generator_for(SEED, "partners", PLAN.source, PLAN.epoch, PLAN.step)).numpy()


def stored(source):
    """Model inputs of the batch, sample by sample, in plain arithmetic."""
    scale = {"unit_range": 255, "hounsfield": 1024, "zscore": 1}[source.modality.intensity]
    samples = [torch.from_numpy(source.samples[index].astype(np.float32)) / scale for index in INDICES]
    channels = source.modality.input_shape[0]
    return [torch.cat([sample] * (channels // len(sample))) for sample in samples]


class TestImages:
    @pytest.mark.parametrize("name", IMAGES)
    def test_pretext_inputs_without_augmentation(self, name, build, fake_source):
        prepared = build(name, augment=False).pretext()
        assert torch.allclose(prepared.inputs, torch.stack(stored(fake_source(name, 8))), atol=1e-6)
        assert prepared.arguments["task"] == "pretext" and prepared.arguments["modality"] == name
        assert prepared.arguments["mask_ratio"] == 0.75

    @pytest.mark.parametrize(("name", "patches"), [("xray", 2 * 3), ("ct", 3 * 2 * 2)])
    def test_noise_is_one_number_per_patch(self, name, patches, build):
        noise = build(name).pretext().arguments["noise"]
        assert torch.equal(noise, torch.rand(5, patches, generator=draws("mask")))

    @pytest.mark.parametrize("name", ["ct", "mri"])
    def test_mirroring_by_loops(self, name, build, fake_source):
        source = fake_source(name, 8)
        record = draw_augmentation(source.modality, 5, draws("augment"))
        for sample, flips, result in zip(stored(source), record.flip, build(name).pretext().inputs, strict=True):
            axes = [axis + 1 for axis in range(3) if flips[axis]]
            assert torch.allclose(result, sample.flip(axes), atol=1e-6)

    def test_crops_are_those_of_single_samples(self, build, fake_source):
        source = fake_source("pathology", 8)
        record = draw_augmentation(source.modality, 5, draws("augment"))
        result = build("pathology").pretext().inputs
        for row, sample in enumerate(stored(source)):
            alone = record.rows(torch.tensor([row])).apply(sample[None])
            assert torch.allclose(result[row], alone[0], atol=1e-6)

    @pytest.mark.parametrize("name", IMAGES)
    def test_mixing_by_loops(self, name, build, fake_source):
        samples, permutation = stored(fake_source(name, 8)), partners()
        weights = torch.rand(5, generator=draws("mix"))
        mixed = build(name, augment=False).mixed()
        assert mixed.arguments["task"] == "features"
        for row in range(5):
            expected = weights[row] * samples[row] + (1 - weights[row]) * samples[permutation[row]]
            assert torch.allclose(mixed.inputs[row], expected, atol=1e-5)

    def test_mixed_samples_are_augmented_first(self, build):
        batch, weights, permutation = build("ct"), torch.rand(5, generator=draws("mix")), partners()
        augmented, mixed = batch.pretext().inputs, batch.mixed().inputs
        for row in range(5):
            expected = weights[row] * augmented[row] + (1 - weights[row]) * augmented[permutation[row]]
            assert torch.allclose(mixed[row], expected, atol=1e-5)

    def test_all_tokens_count_in_distillation(self, build):
        batch = build("ct")
        assert batch.token_mask(batch.mixed()) is None


def masked_by_loops(vocabulary, ids, select, action, replacement, share):
    """Whole-word masking of one text, word by word (METHOD section 4)."""
    special, ordinary = vocabulary.special, [n for n in range(vocabulary.size) if not vocabulary.special[n]]
    words = []
    for place, number in enumerate(ids):
        if special[number]:
            continue
        if vocabulary.starts_word[number] or not words or words[-1][-1] != place - 1:
            words.append([place])
        else:
            words[-1].append(place)
    quota = max(1, round(share * len(words)))
    masked, labels = list(ids), [-100] * len(ids)
    for word in sorted(words, key=lambda word: select[word[0]])[:quota]:
        for place in word:
            labels[place] = ids[place]
            if action[place] < 0.8:
                masked[place] = vocabulary.mask_id
            elif action[place] < 0.9:
                masked[place] = ordinary[replacement[place] % len(ordinary)]
    return masked, labels


class TestText:
    def test_pretext_by_loops(self, build, fake_source, vocabulary):
        ids = fake_source("report", 8).samples[INDICES].astype(int)
        generator = draws("words")
        shape = ids.shape
        select, action = (torch.rand(shape, generator=generator).tolist() for _ in range(2))
        replacement = torch.randint(vocabulary.size, shape, generator=generator).tolist()
        prepared = build("report", masked_word_share=0.4).pretext()
        length = int((ids != vocabulary.pad_id).sum(axis=1).max())
        for row in range(5):
            expected = masked_by_loops(
                vocabulary, ids[row].tolist(), select[row], action[row], replacement[row], share=0.4
            )
            assert prepared.inputs[row].tolist() == expected[0][:length]
            assert prepared.arguments["labels"][row].tolist() == expected[1][:length]
            padding = (ids[row] != vocabulary.pad_id)[:length]
            assert prepared.arguments["padding_mask"][row].tolist() == padding.tolist()

    def test_mixing_by_loops(self, build, fake_source, vocabulary):
        ids, permutation = fake_source("report", 8).samples[INDICES].astype(int), partners()
        generator = draws("mix")
        probability = torch.rand((), generator=generator).item()
        mask = torch.rand(*ids.shape, generator=generator) < probability
        mixed = build("report").mixed()
        length = mixed.inputs.shape[1]
        for row, partner in enumerate(permutation):
            expected = [ids[row][k] if mask[row, k] else ids[partner][k] for k in range(ids.shape[1])]
            assert mixed.inputs[row].tolist() == expected[:length]
            assert set(expected[length:]) <= {vocabulary.pad_id}
            real = [number != vocabulary.pad_id for number in expected[:length]]
            assert mixed.arguments["padding_mask"][row].tolist() == real

    def test_nothing_is_cut_behind_a_column_of_padding(self, build):
        """Mixed texts can have padding between real tokens; what follows must stay."""
        batch = build("report")
        padding = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
        inputs = batch._inputs(torch.arange(10).reshape(2, 5), "features", padding_mask=padding)
        assert inputs.inputs.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
        assert torch.equal(inputs.arguments["padding_mask"], padding[:, :4])

    def test_only_padding_keeps_one_column(self, build):
        padding = torch.zeros(2, 5, dtype=torch.bool)
        inputs = build("report")._inputs(torch.zeros(2, 5, dtype=torch.int64), "features", padding_mask=padding)
        assert inputs.inputs.shape == (2, 1)

    def test_padding_does_not_count_in_distillation(self, build):
        batch = build("report")
        mixed = batch.mixed()
        assert torch.equal(batch.token_mask(mixed), mixed.arguments["padding_mask"])

    def test_needs_the_vocabulary(self, build):
        with pytest.raises(InputError, match="vocabulary.json"):
            build("report", vocabulary=None)


def joined(parts):
    """Rows of several ranks under each other; texts padded to a common length."""
    width = max(part.shape[1] for part in parts)
    if parts[0].ndim == 2 and parts[0].dtype != torch.float32:
        parts = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
    return torch.cat(parts)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kind", ["pretext", "mixed"])
@pytest.mark.parametrize("name", ["report", "xray", "ct"])
class TestRanks:
    def test_rows_of_all_ranks_are_those_of_one(self, name, kind, ranks, build):
        whole = getattr(build(name), kind)()
        parts = [getattr(build(name, rank, ranks), kind)() for rank in range(ranks)]
        assert torch.equal(joined([part.inputs for part in parts]), whole.inputs)
        for key, value in whole.arguments.items():
            if key == "labels":  # padded with 0 above, only where the text is padding
                together, value = joined([part.arguments[key] + 100 for part in parts]), value + 100
                assert torch.equal(together, value)
            elif torch.is_tensor(value):
                assert torch.equal(joined([part.arguments[key] for part in parts]), value), key
            else:
                assert all(part.arguments[key] == value for part in parts)


class TestDraws:
    def test_stochastic_depth_has_two_numbers_a_block(self, build):
        noise = build("ct").pretext().arguments["depth_noise"]
        assert torch.equal(noise, torch.rand(5, 4, generator=draws("depth")))

    @pytest.mark.parametrize("name", ["report", "xray", "ct"])
    def test_asking_twice_gives_the_same(self, name, build):
        batch = build(name)
        first, second = batch.mixed(), batch.mixed()
        assert torch.equal(first.inputs, second.inputs)
        assert torch.equal(first.arguments["depth_noise"], second.arguments["depth_noise"])

    @pytest.mark.parametrize("change", [{"seed": SEED + 1}, {"mask_ratio": 0.5}])
    def test_settings_reach_the_draws(self, change, build):
        usual, changed = build("xray").pretext().arguments, build("xray", **change).pretext().arguments
        assert torch.equal(usual["noise"], changed["noise"]) == ("seed" not in change)
        assert changed["mask_ratio"] == change.get("mask_ratio", 0.75)


class TestSettings:
    @pytest.mark.parametrize("ratio", [-0.1, 1.0])
    def test_mask_ratio(self, ratio):
        with pytest.raises(InputError, match=f"mask_ratio.*received {ratio}"):
            StepSettings(mask_ratio=ratio)

    @pytest.mark.parametrize("share", [0.0, 1.5])
    def test_masked_word_share(self, share):
        with pytest.raises(InputError, match=f"masked_word_share.*received {share}"):
            StepSettings(masked_word_share=share)

    def test_patches_of_a_published_input(self):
        from medcoss_components.data.modalities import get_modality

        counts = {name: StepSettings().patches(get_modality(name)) for name in ("xray", "ct")}
        assert counts == {"xray": 196, "ct": 144}  # METHOD section 2

    def test_sizes_come_from_the_network(self, tiny_network, tiny_sizes):
        settings = settings_for(tiny_network(), mask_ratio=0.5)
        assert (settings.depth, settings.mask_ratio) == (2, 0.5)
        assert (settings.patch_2d, settings.patch_3d) == (tiny_sizes["patch_2d"], tiny_sizes["patch_3d"])

    def test_vocabulary_larger_than_the_table_refused(self, tiny_network, vocabulary):
        with pytest.raises(InputError, match=f"has {vocabulary.size} pieces, the network has rows for 50"):
            settings_for(tiny_network(vocabulary_size=50), vocabulary=vocabulary)


def test_noise_fits_the_network(tiny_network, build):
    """Patches that are not cubes: the network accepts the noise that the batch draws."""
    prepared = build("ct").pretext()
    assert torch.isfinite(tiny_network()(prepared.inputs, **prepared.arguments))


def test_inputs_are_what_the_store_gives_a_reader(build, fake_source):
    source = fake_source("xray", 8)
    raw = torch.from_numpy(source.gather(INDICES))
    assert torch.equal(build("xray", augment=False).loaded[:5], to_model_input(source.modality, raw))
