from math import prod

import pytest
import torch
from monai.networks.nets import UNETR

from medcoss_components.errors import InputError
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.segmentation import (
    MaskDecoder,
    SegmentationModel,
    hidden_blocks,
    region_values,
    upsampling_steps,
)

SIZES = {"width": 24, "depth": 4, "heads": 3, "layer_scale": 0.5, "feature_size": 2}
SIZES |= {"patch_2d": (4, 6), "patch_3d": (4, 6, 8)}
SHAPES = {"xray": (3, 8, 18), "ct": (1, 8, 6, 24)}
REGIONS = {"liver": [1, 2], "tumour": [2]}


def model(modality="xray", **arguments):
    settings = {"regions": REGIONS, "input_shape": SHAPES.get(modality)} | SIZES | arguments
    network = SegmentationModel(preset="demo", modality=modality, **settings)
    initialise(network, torch.Generator().manual_seed(5))
    return network


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(12, (4, 7, 10, 12)), (4, (1, 2, 3, 4)), (24, (8, 14, 20, 24)), (2, (1, 1, 2, 2)), (1, (1, 1, 1, 1))],
)
def test_hidden_blocks(depth, blocks):
    assert hidden_blocks(depth) == blocks


@pytest.mark.parametrize(
    ("side", "steps"),
    [(16, (2, 2, 2, 2)), (1, (1, 1, 1, 1)), (6, (3, 2, 1, 1)), (8, (2, 2, 2, 1)), (14, (7, 2, 1, 1))]
    + [(32, (4, 2, 2, 2)), (64, (4, 4, 2, 2))],
)
def test_upsampling_steps(side, steps):
    assert upsampling_steps(side) == steps and prod(steps) == side


class StubTransformer(torch.nn.Module):
    """Stands in for MONAI's ViT: gives out the states that it was given."""

    def __init__(self, **_):
        super().__init__()
        self.states = ()

    def forward(self, _):
        return self.states[-1], self.states


@pytest.mark.parametrize("spatial", [(32, 48), (16, 32, 48)])
def test_the_decoder_is_that_of_unetr(spatial, monkeypatch):
    """MONAI's UNETR, with our weights and our hidden states, gives our output."""
    monkeypatch.setattr("monai.networks.nets.unetr.ViT", StubTransformer)
    axes, width, grid = len(spatial), 24, [side // 16 for side in spatial]
    theirs = UNETR(
        in_channels=2, out_channels=3, img_size=spatial, feature_size=4, hidden_size=width, num_heads=2,
        spatial_dims=axes,
    ).eval()  # fmt: skip
    ours = MaskDecoder(patch=(16,) * axes, channels=2, width=width, feature_size=4, regions=3).eval()
    initialise(ours, torch.Generator().manual_seed(1))
    encoders = [theirs.encoder1, theirs.encoder2, theirs.encoder3, theirs.encoder4]
    decoders = [theirs.decoder5, theirs.decoder4, theirs.decoder3, theirs.decoder2, theirs.out]
    wanted = [value for part in (*encoders, *decoders) for value in part.parameters()]
    given = [value for part in (ours.image, *ours.skips, *ours.joins, ours.output) for value in part.parameters()]
    with torch.no_grad():
        for target, value in zip(wanted, given, strict=True):
            target.copy_(value)
        theirs.vit.states = [torch.randn(1, prod(grid), width) for _ in range(12)]
        image = torch.randn(1, 2, *spatial)
        maps = [theirs.vit.states[block - 1].transpose(1, 2).reshape(1, width, *grid) for block in (4, 7, 10, 12)]
        torch.testing.assert_close(ours(image, maps), theirs(image))


class TestOutputs:
    @pytest.mark.parametrize(
        ("modality", "shape"),
        [("xray", (8, 18)), ("xray", (4, 6)), ("xray", (12, 12)), ("ct", (8, 6, 24)), ("ct", (4, 12, 16))],
    )
    def test_one_map_per_region_of_the_size_of_the_input(self, modality, shape):
        inputs = torch.rand(3, SHAPES[modality][0], *shape)
        logits = model(modality)(inputs)
        assert logits.shape == (3, 2, *shape) and logits.dtype == torch.float32

    def test_patch_of_the_presets(self):
        network = model("ct", patch_3d=None, input_shape=(1, 16, 32, 48))
        assert network(torch.rand(1, 1, 32, 16, 16)).shape == (1, 2, 32, 16, 16)

    def test_without_a_class_token(self):
        assert "image_embedding.class_token" not in model().state_dict()

    @pytest.mark.parametrize("modality", list(SHAPES))
    def test_cells_stand_where_their_patches_are(self, modality, batch):
        """The decoder gets each token at the cell of its patch."""
        network, inputs = model(modality).eval(), batch(modality)
        received = {}
        network.mask_decoder.register_forward_pre_hook(lambda _, arguments: received.update(maps=arguments[1]))
        network(inputs)
        states = network.encode_image(inputs, after=hidden_blocks(4))
        grid = [side // cell for side, cell in zip(inputs.shape[2:], network.patch, strict=True)]
        for cells, state in zip(received["maps"], states, strict=True):
            for number in range(prod(grid)):
                place = torch.unravel_index(torch.tensor(number), grid)
                torch.testing.assert_close(cells[(slice(None), slice(None), *place)], state[:, number])

    @pytest.mark.parametrize("modality", list(SHAPES))
    def test_samples_of_a_batch_do_not_mix(self, modality, batch):
        network, inputs = model(modality).eval(), batch(modality)
        together = network(inputs)
        for row in range(3):
            torch.testing.assert_close(network(inputs[row : row + 1])[0], together[row], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("modality", list(SHAPES))
    def test_bfloat16_gives_float32_logits_that_are_near(self, modality, batch):
        network, inputs = model(modality).eval(), batch(modality)
        exact = network(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(inputs)
        assert logits.dtype == torch.float32
        assert (logits - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.01

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    @pytest.mark.parametrize("modality", list(SHAPES))
    def test_traced(self, modality, batch):
        network = model(modality).eval()
        seen, fresh = batch(modality, 1)[:1], batch(modality, 2)[:1]
        torch.testing.assert_close(torch.jit.trace(network, seen)(fresh), network(fresh))

    def test_sliding_windows(self, batch):
        from monai.inferers import SlidingWindowInferer

        network = model("ct").eval()
        inferer = SlidingWindowInferer(roi_size=(8, 6, 24), sw_batch_size=2, overlap=0.5, mode="gaussian")
        with torch.no_grad():
            assert inferer(torch.rand(1, 1, 11, 9, 30), network).shape == (1, 2, 11, 9, 30)


class TestTraining:
    @pytest.mark.parametrize("modality", list(SHAPES))
    def test_every_parameter_gets_a_gradient(self, modality, batch):
        network = model(modality).train()
        network(batch(modality)).square().sum().backward()
        assert [name for name, value in network.named_parameters() if value.grad is None] == []

    def test_a_frozen_encoder_leaves_the_decoder(self, batch):
        network = model(stochastic_depth=0.5).freeze_encoder().train()
        inputs = batch("xray")
        network(inputs).square().sum().backward()
        learning = {name for name, value in network.named_parameters() if value.grad is not None}
        assert learning == {name for name, _ in network.named_parameters() if name.startswith("mask_decoder.")}
        torch.testing.assert_close(network(inputs), network(inputs))

    def test_depth_noise_of_a_row_concerns_this_row(self, batch):
        network, inputs, noise = model(stochastic_depth=0.5).train(), batch("xray"), torch.rand(3, 8)
        together = network(inputs, depth_noise=noise)
        for row in range(3):
            alone = network(inputs[row : row + 1], depth_noise=noise[row : row + 1])
            torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)

    def test_a_model_learns_overlapping_regions(self):
        """Bright and very bright places."""
        network = model(input_shape=(3, 8, 12)).train()
        values = torch.randint(0, 3, (4, 8, 12), generator=torch.Generator().manual_seed(0))
        images = (values / 2.0)[:, None].expand(-1, 3, -1, -1).contiguous()
        masks = torch.stack([values >= 1, values == 2], dim=1).float()
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-2)
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(network(images), masks).backward()
            optimizer.step()
        assert ((network.eval()(images) > 0) == masks.bool()).float().mean() > 0.98


class TestInitialisation:
    @pytest.mark.parametrize("modality", list(SHAPES))
    def test_the_generator_gives_every_value(self, modality):
        network = model(modality)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(float("nan"))
        initialise(network, torch.Generator().manual_seed(5))
        expected = model(modality).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())

    def test_nothing_is_computed_without_a_device(self):
        with torch.device("meta"):
            assert all(value.is_meta for value in model("ct").state_dict().values())


class TestSettings:
    def test_regions_are_kept_in_order(self):
        regions = {"tumour": 2, "liver": (2, 1), "all": "any"}
        assert list(model(regions=regions).regions.items()) == [("tumour", [2]), ("liver", [1, 2]), ("all", "any")]
        assert region_values(2) == {"1": [1], "2": [2]}

    @pytest.mark.parametrize("regions", [0, {}, ["liver"], None, "any"])
    def test_no_regions(self, regions):
        with pytest.raises(InputError, match="regions: must be a mapping of names"):
            region_values(regions)

    @pytest.mark.parametrize("values", [[], [0], "all", [1.5], None, ["1"]])
    def test_wrong_values(self, values):
        with pytest.raises(InputError, match="regions: liver must list mask values"):
            region_values({"liver": values})

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"modality": "report"}, "modality report: segmentation needs images or volumes"),
            ({"feature_size": 0}, "feature_size=0 must be at least 1"),
            ({"input_shape": (3, 9, 18)}, r"input_shape=\(3, 9, 18\).*The nearest are \(8, 18\)"),
        ],
    )
    def test_what_cannot_be_built(self, arguments, message):
        with pytest.raises(InputError, match=message):
            model(**arguments)

    def test_inputs_that_are_no_multiples_of_the_patch(self):
        with pytest.raises(InputError, match=r"input size \(8, 17\) must be a multiple of the patch \(4, 6\)"):
            model()(torch.zeros(1, 3, 8, 17))


def test_gradients_of_volumes_under_autocast_are_the_same_every_time():
    network = SegmentationModel(preset="demo", modality="ct", input_shape=(1, 16, 32, 32), regions=1).eval()
    inputs = torch.randn(2, 1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for number in range(4):
        torch.full((100_003 * (number + 1),), 1e3 * number)  # leaves other values in freed memory
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            network(inputs).square().mean().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in network.mask_decoder.parameters()]))
    assert torch.isfinite(gradients[0]).all()
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
