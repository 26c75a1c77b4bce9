import pytest
import torch
from torch import nn

from medcoss_components.networks.initialisation import fill_xavier, initialise


def test_xavier_bound_counts_a_kernel_as_inputs():
    weight = torch.empty(40, 2, 3, 5)  # 40 outputs, 30 inputs
    fill_xavier(weight, torch.Generator().manual_seed(0))
    bound = (6 / 70) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.99 * bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_generator_alone_decides():
    first, second = (nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Embedding(6, 5)) for _ in range(2))
    for network in (first, second):
        initialise(network, torch.Generator().manual_seed(3))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert first[0].bias.eq(0).all() and first[1].weight.eq(1).all()


def test_tokens_and_scales_get_their_own_first_values(tiny):
    model = tiny(layer_scale=0.3)
    assert model.encoder.blocks[0].attention_scale.eq(0.3).all()
    assert model.image_embedding.tokenizers["2d"].temporal.eq(0).all()
    for table in (model.image_embedding.class_token, model.decoder.mask_token, model.text_embedding.word.weight):
        assert table.std().item() == pytest.approx(0.02, rel=0.5)


def test_every_parameter_is_initialised(tiny):
    """Fill a model with NaN; initialising leaves none."""
    model = tiny(decoder_positions="learned")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialise(model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("layer", "numbers"),
    [(nn.Conv3d(2, 5, (1, 3, 3), bias=True), 2 * 9), (nn.ConvTranspose2d(5, 4, (2, 3), bias=True), 4 * 6)],
)
def test_convolutions_start_in_the_range_of_pytorch(layer, numbers):
    """PyTorch's own start never leaves the bound either."""
    bound = numbers**-0.5
    assert layer.weight.abs().max() <= bound
    initialise(layer, torch.Generator().manual_seed(0))
    assert 0.9 * bound < layer.weight.abs().max() <= bound
    assert layer.bias.eq(0).all()


def test_norms_of_convolutional_networks_start_neutral():
    network = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.GroupNorm(1, 3), nn.BatchNorm3d(3))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 5.0)
    initialise(network)
    assert all(layer.weight.eq(1).all() and layer.bias.eq(0).all() for layer in network)
