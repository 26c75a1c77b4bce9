import copy

import pytest
import torch

from medcoss_components.errors import InputError
from medcoss_components.networks.pretraining import (
    ENCODER_PREFIXES,
    PRETEXT_PREFIXES,
    PretrainingModel,
    encoder_state,
    reset_pretext_heads,
)
from medcoss_components.pretext.losses import patchify

IMAGES = ("xray", "pathology", "ct", "mri")
ALL = ("report", *IMAGES)


def chosen_labels(ids):
    return torch.where(torch.arange(ids.shape[1]) % 3 == 1, ids, -100)


def pretext(model, modality, inputs, **arguments):
    if modality == "report":
        arguments["labels"] = chosen_labels(inputs)
    return model(inputs, modality=modality, task="pretext", **arguments)


@pytest.mark.parametrize("modality", ALL)
class TestEveryModality:
    """What holds for any modality."""

    def test_features_and_loss_have_their_shapes(self, tiny, batch, modality):
        model, inputs = tiny(), batch(modality)
        tokens = 9 if modality == "report" else 7
        assert model(inputs, modality=modality).shape == (3, tokens, 24)
        loss = pretext(model, modality, inputs)
        assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite()

    def test_sum_over_count_is_the_mean(self, tiny, batch, modality):
        model, inputs = tiny().eval(), batch(modality)
        noise = None if modality == "report" else torch.rand(3, 6)
        total, count = pretext(model, modality, inputs, noise=noise, reduction="sum")
        assert count == (9 if modality == "report" else 15)  # 3 words or 6 - floor(1.5) patches of three samples
        torch.testing.assert_close(total / count, pretext(model, modality, inputs, noise=noise))

    def test_a_batch_equals_its_samples(self, tiny, batch, modality):
        model, inputs = tiny().train(), batch(modality)
        noise, depth_noise = torch.rand(3, 6), torch.rand(3, 4)
        given = {} if modality == "report" else {"noise": noise, "mask_ratio": 0.5}
        together = model.features(modality, inputs, depth_noise=depth_noise, **given)
        for row in range(3):
            own = {} if modality == "report" else {"noise": noise[row : row + 1], "mask_ratio": 0.5}
            alone = model.features(modality, inputs[row : row + 1], depth_noise=depth_noise[row : row + 1], **own)
            torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)

    def test_same_seed_same_numbers(self, tiny, batch, modality):
        results = []
        for _ in range(2):
            model = tiny().train()
            loss = pretext(model, modality, batch(modality))
            loss.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            results.append([loss, *gradients])
        assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))

    def test_autocast_gives_float32_losses_near_the_exact_ones(self, tiny, batch, modality):
        model, inputs = tiny().eval(), batch(modality)
        noise = None if modality == "report" else torch.rand(3, 6)
        exact = pretext(model, modality, inputs, noise=noise)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = pretext(model, modality, inputs, noise=noise)
        rough.backward()
        assert rough.dtype == torch.float32
        assert rough != exact  # autocast did something
        torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.02)

    def test_the_pretext_task_can_be_learnt(self, tiny, batch, modality):
        model, inputs = tiny(stochastic_depth=0.0), batch(modality)
        noise = None if modality == "report" else torch.rand(3, 6)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(30):
            loss = pretext(model, modality, inputs, noise=noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]

    def test_gradients_reach_the_encoder_and_this_tokenizer_only(self, tiny, batch, modality):
        model = tiny(decoder_positions="learned")
        pretext(model, modality, batch(modality)).backward()
        reached = {name for name, p in model.named_parameters() if p.grad is not None}
        own = {"report": "text_embedding", "xray": "tokenizers.2d", "pathology": "tokenizers.2d"}.get(modality)
        own = own or "tokenizers.3d"
        assert any(own in name for name in reached) and any(name.startswith("encoder") for name in reached)
        foreign = {"text_embedding", "tokenizers.2d", "tokenizers.3d"} - {own}
        assert not [name for name in reached if any(part in name for part in foreign)]

    def test_the_mean_embedding_is_one_vector_per_sample(self, tiny, batch, modality):
        model, inputs = tiny().eval(), batch(modality)
        expected = model.features(modality, inputs).mean(dim=1)
        torch.testing.assert_close(model.embedding(modality, inputs), expected)


@pytest.mark.parametrize("modality", ["xray", "ct"])
def test_visible_features_are_those_of_a_shorter_sequence(tiny, batch, modality):
    """Masking before the patch projection equals embedding everything and dropping tokens."""
    model, inputs, noise = tiny().eval(), batch(modality), torch.rand(3, 6)
    features = model.features(modality, inputs, noise=noise, mask_ratio=0.6)
    assert features.shape == (3, 3, 24)  # floor(6 * 0.4) = 2 patches and the class token
    patches, grid = (
        patchify(inputs, model.image_embedding.tokenizer(inputs.ndim - 2).patch),
        model.grid(modality, inputs),
    )
    tokens = model.image_embedding(inputs.ndim - 2, patches, grid)
    for row in range(3):
        smallest = sorted(range(6), key=lambda place, r=row: noise[r, place].item())[:2]
        expected = model.encoder(tokens[row : row + 1, [0, *(1 + place for place in smallest)]])
        torch.testing.assert_close(features[row], expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modality", ["xray", "ct"])
def test_image_loss_equals_loops(tiny, batch, modality):
    """Mean over removed patches of the mean squared error against patches normalised by their own statistics."""
    model, inputs, noise = tiny().eval(), batch(modality), torch.rand(3, 6)
    predicted, mask = model.reconstruct(modality, inputs, noise=noise, mask_ratio=0.5)
    patches = patchify(inputs, model.image_embedding.tokenizer(inputs.ndim - 2).patch)
    errors = []
    for row in range(3):
        largest = sorted(range(6), key=lambda place, r=row: noise[r, place].item())[3:]
        assert mask[row].nonzero().flatten().tolist() == sorted(largest)
        for place in largest:
            values = patches[row, place]
            target = (values - values.mean()) / (values.var(unbiased=True) + 1e-6).sqrt()
            errors.append((predicted[row, place] - target).square().mean())
    loss = model.pretext_loss(modality, inputs, noise=noise, mask_ratio=0.5)
    torch.testing.assert_close(loss, torch.stack(errors).mean(), atol=1e-6, rtol=1e-5)


def test_token_loss_equals_cross_entropy_over_all_positions(tiny, batch):
    model, ids = tiny().eval(), batch("report")
    padding = torch.ones(3, 9)
    padding[0, 6:] = 0
    labels = chosen_labels(ids)
    everywhere = model.predict_tokens("report", ids, torch.ones(3, 9), padding_mask=padding)
    expected = torch.nn.functional.cross_entropy(everywhere, labels.flatten(), ignore_index=-100)
    loss = model.pretext_loss("report", ids, labels=labels, padding_mask=padding)
    torch.testing.assert_close(loss, expected)


def test_a_batch_without_chosen_words_has_loss_zero_and_a_gradient(tiny, batch):
    model, ids = tiny(), batch("report")
    loss = model.pretext_loss("report", ids, labels=torch.full_like(ids, -100))
    loss.backward()
    assert loss == 0.0


def test_predicted_tokens_follow_the_order_of_the_positions(tiny, batch):
    model, ids = tiny().eval(), batch("report")
    positions = torch.zeros(3, 9, dtype=torch.bool)
    positions[0, 4] = positions[2, 1] = positions[2, 7] = True
    logits = model.predict_tokens("report", ids, positions)
    everywhere = model.predict_tokens("report", ids, torch.ones(3, 9)).reshape(3, 9, 50)
    torch.testing.assert_close(logits, torch.stack([everywhere[0, 4], everywhere[2, 1], everywhere[2, 7]]))


def test_padding_is_left_out_of_features_and_of_the_mean(tiny, batch):
    model, ids = tiny().eval(), batch("report")
    padding = torch.ones(3, 9)
    padding[1, 5:] = 0
    embedded = model.embedding("report", ids, padding_mask=padding)
    short = model.embedding("report", ids[1:2, :5])
    torch.testing.assert_close(embedded[1], short[0], atol=1e-6, rtol=1e-5)
    empty = model.embedding("report", ids, padding_mask=torch.zeros(3, 9))
    assert empty.eq(0).all()


def test_causal_text_does_not_see_later_words(tiny, batch):
    causal, both = tiny(text_attention="causal").eval(), tiny().eval()
    ids = batch("report")
    changed = ids.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 50
    same = causal.features("report", ids)[:, :6] == causal.features("report", changed)[:, :6]
    assert same.all()
    assert not torch.allclose(both.features("report", ids)[:, :6], both.features("report", changed)[:, :6])


def test_text_is_never_shortened(tiny, batch):
    model, ids = tiny().eval(), batch("report")
    assert torch.equal(model.features("report", ids, mask_ratio=0.75), model.features("report", ids))


@pytest.mark.parametrize(("modality", "shape"), [("xray", (2, 3, 16, 24)), ("ct", (2, 1, 4, 12, 32))])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_other_input_sizes_interpolate_positions(tiny, modality, shape, positions):
    model = tiny(decoder_positions=positions)
    inputs = torch.randn(shape)
    assert model.grid(modality, inputs) == ((4, 4) if modality == "xray" else (1, 2, 4))
    count = 16 if modality == "xray" else 8
    assert model.features(modality, inputs).shape == (2, count + 1, 24)
    pretext(model, modality, inputs).backward()
    assert model.image_embedding.tokenizer(len(shape) - 2).position.grad.abs().sum() > 0


@pytest.mark.parametrize("modality", IMAGES)
def test_reconstruction_images_keep_visible_patches(tiny, batch, modality):
    model, inputs, noise = tiny().eval(), batch(modality), torch.rand(3, 6)
    _, mask = model.reconstruct(modality, inputs, noise=noise)
    masked, rebuilt = model.reconstruction_images(modality, inputs, noise=noise, fill=-9.0)
    patch = model.image_embedding.tokenizer(inputs.ndim - 2).patch
    true, hidden, shown = (patchify(images, patch) for images in (inputs, masked, rebuilt))
    assert rebuilt.shape == inputs.shape
    assert torch.equal(hidden[mask == 0], true[mask == 0]) and torch.equal(shown[mask == 0], true[mask == 0])
    assert hidden[mask == 1].eq(-9.0).all() and not torch.allclose(shown[mask == 1], true[mask == 1])


def test_a_new_modality_needs_only_its_entry(tiny):
    entry = {"name": "networks_test_scan", "dimension": 3, "input_shape": (1, 8, 6, 24), "intensity": "zscore"}
    model = tiny(modality=entry)
    volumes = torch.randn(2, 1, 8, 6, 24)
    assert model(volumes).shape == (2, 7, 24)
    assert model.features("networks_test_scan", volumes).shape == (2, 7, 24)


def test_sincos_models_carry_no_decoder_positions(tiny):
    names = tiny().state_dict()
    assert not [name for name in names if "positions" in name]
    assert [name for name in tiny(decoder_positions="learned").state_dict() if "positions" in name]


def test_every_parameter_belongs_to_the_encoder_or_to_the_pretext_heads(tiny):
    model = tiny()
    names = set(model.state_dict())
    carried = set(encoder_state(model))
    assert carried == {name for name in names if name.startswith(ENCODER_PREFIXES)}
    assert names - carried == {name for name in names if name.startswith(PRETEXT_PREFIXES)}
    assert "image_embedding.class_token" in carried and "decoder.mask_token" not in carried


def test_resetting_heads_leaves_the_encoder_and_follows_the_generator(tiny):
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    reset_pretext_heads(model, torch.Generator().manual_seed(1))
    first = copy.deepcopy(model.state_dict())
    reset_pretext_heads(model, torch.Generator().manual_seed(1))
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(before[name], first[name]) for name in encoder_state(model))
    for name in ("decoder.embed.weight", "decoder.mask_token", "decoder.heads.3d.weight", "text_head.output.weight"):
        assert not torch.equal(before[name], first[name])


def test_a_copied_model_gives_the_same_features(tiny, batch):
    model = tiny().eval()
    model.reconstruct("xray", batch("xray"))  # fills the table cache
    twin = copy.deepcopy(model)
    assert torch.equal(twin.features("xray", batch("xray")), model.features("xray", batch("xray")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text_attention": "forward"}, "text_attention='forward' must be one of bidirectional, causal"),
        ({"decoder_positions": "none"}, "decoder_positions='none'"),
        ({"modality": "smell"}, "smell"),
        ({"preset": "tiny"}, "preset='tiny'"),
    ],
)
def test_wrong_choices_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        PretrainingModel(**({"preset": "demo"} | arguments))


def test_wrong_calls_are_refused(tiny, batch):
    model = tiny()
    wrong = [
        (lambda: model(batch("xray")), "modality=None"),
        (lambda: model(batch("xray"), modality="xray", task="segment"), "task='segment' must be one of"),
        (lambda: model.pretext_loss("report", batch("report")), "labels=None"),
        (lambda: model.predict_tokens("ct", batch("ct"), torch.ones(3, 6)), "texts only, not 3D"),
        (lambda: model.features("xray", batch("ct")), r"shape \(3, 1, 8, 6, 24\)"),
        (lambda: model.features("xray", torch.rand(1, 3, 9, 18)), r"size \(9, 18\).*patch \(4, 6\)"),
        (lambda: model.pretext_loss("xray", batch("xray"), noise=torch.rand(3, 5)), r"\(3, 5\) must be \(3, 6\)"),
        (lambda: model.pretext_loss("xray", batch("xray"), mask_ratio=1.0), "mask_ratio=1.0"),
        (lambda: model.pretext_loss("xray", batch("xray"), reduction="none"), "reduction='none'"),
    ]
    for call, message in wrong:
        with pytest.raises(InputError, match=message):
            call()


def test_constructor_modality_is_the_default(tiny, batch):
    model = tiny(modality="xray").eval()
    assert torch.equal(model(batch("xray")), model.features("xray", batch("xray")))
    assert pretext(model, None, batch("xray"), noise=torch.rand(3, 6)).isfinite()


@pytest.fixture
def one_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_reaches_every_task(tiny, batch, one_process_group):
    """The modality changes from step to step, so parameters of the others are unused."""
    model = tiny().train()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    noise, depth_noise = torch.rand(3, 6), torch.rand(3, 4)
    for modality in ("report", "xray", "ct"):
        inputs = batch(modality)
        given = {"depth_noise": depth_noise} | ({} if modality == "report" else {"noise": noise})
        loss = pretext(wrapped, modality, inputs, **given)
        loss.backward()
        assert torch.equal(loss, pretext(model, modality, inputs, **given))
        wrapped.zero_grad()
        features = wrapped(inputs, modality=modality, task="features", **given)
        features.sum().backward()
        assert torch.equal(features, model.features(modality, inputs, **given))
        wrapped.zero_grad()
