import pytest
import torch
import torch.nn.functional as F

from medcoss_components.errors import InputError
from medcoss_components.networks.backbone import Backbone
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.pretraining import encoder_state
from medcoss_components.weights import load_initial_weights

SIZES = {"width": 24, "depth": 2, "heads": 3, "vocabulary_size": 50, "text_positions": 12}
SIZES |= {"patch_2d": (4, 6), "patch_3d": (4, 6, 8)}
SHAPES = {"report": (9,), "xray": (3, 8, 18), "ct": (1, 8, 6, 24)}
ULTRASOUND = {"name": "test_backbone_grey", "dimension": 2, "input_shape": [1, 8, 18], "intensity": "unit_range"}


def backbone(modality="xray", **arguments):
    shape = SHAPES.get(modality) if isinstance(modality, str) else None
    model = Backbone(preset="demo", modality=modality, **(SIZES | {"input_shape": shape} | arguments))
    initialise(model, torch.Generator().manual_seed(5))
    return model


class TestParameters:
    @pytest.mark.parametrize("modality", list(SHAPES))
    def test_names_and_shapes_are_those_of_pretraining(self, modality, tiny):
        whole, part = tiny().state_dict(), backbone(modality).state_dict()
        assert set(part) <= set(encoder_state(tiny()))
        assert all(whole[name].shape == value.shape for name, value in part.items())

    @pytest.mark.parametrize(("modality", "own"), [("report", "text_emb"), ("xray", ".2d."), ("ct", ".3d.")])
    def test_only_the_tokenizer_that_is_needed(self, modality, own):
        names = [name for name in backbone(modality).state_dict() if not name.startswith("encoder.")]
        rest = [name for name in names if own not in name]
        tokens = ["image_embedding.class_token", "image_embedding.norm.weight", "image_embedding.norm.bias"]
        assert rest == ([] if modality == "report" else tokens)

    def test_no_class_token_when_not_wanted(self):
        model = backbone(class_token=False)
        assert "image_embedding.class_token" not in model.state_dict()
        assert model.encode_image(torch.zeros(2, 3, 8, 18))[0].shape == (2, 6, 24)

    def test_the_grid_and_the_channels_are_those_of_the_input(self):
        model = backbone("ct", input_shape=(1, 12, 12, 40))
        assert model.sizes.grid_3d == (3, 2, 5) and model.modality.input_shape == (1, 12, 12, 40)
        assert model.image_embedding.tokenizers["3d"].position.shape == (3, 2, 5, 24)
        assert backbone(ULTRASOUND).sizes.channels_2d == 1

    def test_the_modality_has_its_own_shape(self):
        assert Backbone(preset="demo", modality="pathology").sizes.grid_2d == (14, 14)


class TestOutputs:
    """The same numbers as the pre-training model, from its own weights."""

    @pytest.mark.parametrize("modality", ["xray", "ct"])
    def test_images(self, modality, tiny, batch):
        source, model = tiny(layer_scale=0.5).eval(), backbone(modality).eval()
        load_initial_weights(model, source.state_dict())
        inputs = batch(modality)
        torch.testing.assert_close(model.encode_image(inputs)[0], source.features(modality, inputs))

    @pytest.mark.parametrize("attention", ["bidirectional", "causal"])
    def test_texts(self, attention, tiny):
        source, model = tiny(text_attention=attention).eval(), backbone("report", text_attention=attention).eval()
        load_initial_weights(model, source.state_dict())
        ids = torch.tensor([[7, 8, 9, 10, 0, 0], [5, 6, 0, 0, 0, 0]])
        expected = source.features("report", ids, padding_mask=ids != 0)
        real = (ids != 0).unsqueeze(-1)
        torch.testing.assert_close(model.encode_text(ids), expected * real)  # nobody reads what stands at padding

    def test_another_id_may_mean_padding(self):
        model = backbone("report", pad_id=4).eval()
        first, second = model.encode_text(torch.tensor([[7, 8, 4, 4], [7, 8, 4, 0]]))
        assert not torch.allclose(first[:2], second[:2])

    def test_states_after_chosen_blocks(self, batch):
        model = backbone(depth=3).eval()
        inputs = batch("xray")
        states = model.encode_image(inputs, after=(0, 2, 3))
        tokens = states[0]
        for number, block in enumerate(model.encoder.blocks, start=1):
            tokens = block(tokens)
            if number > 1:
                torch.testing.assert_close(states[number - 1], tokens)

    def test_a_block_that_does_not_exist_is_refused(self, batch):
        with pytest.raises(InputError, match=r"after=\(1, 3\) must hold numbers of blocks, 0 to 2"):
            backbone().encode_image(batch("xray"), after=(1, 3))

    def test_depth_noise_reaches_the_blocks(self, batch):
        model = backbone(stochastic_depth=0.5).train()
        start, end = model.encode_image(batch("xray"), after=(0, 2), depth_noise=torch.zeros(3, 4))
        torch.testing.assert_close(end, start)

    @pytest.mark.parametrize(
        ("modality", "shape", "grid"), [("xray", (12, 12), (3, 2)), ("ct", (8, 12, 16), (2, 2, 2))]
    )
    def test_other_sizes_interpolate_the_grid(self, modality, shape, grid):
        """A larger input gives what a model built for it gives from the same weights."""
        model = backbone(modality).eval()
        other = backbone(modality, input_shape=(SHAPES[modality][0], *shape)).eval()
        report = load_initial_weights(other, model.state_dict())
        name = f"image_embedding.tokenizers.{len(grid)}d.position"
        assert report.interpolated == (name,)
        table = model.state_dict()[name].movedim(-1, 0)[None]
        mode = {2: "bicubic", 3: "trilinear"}[len(grid)]
        torch.testing.assert_close(other.state_dict()[name], F.interpolate(table, grid, mode=mode)[0].movedim(0, -1))
        inputs = torch.randn(2, SHAPES[modality][0], *shape)
        torch.testing.assert_close(model.encode_image(inputs), other.encode_image(inputs))


class TestFreezing:
    def test_the_encoder_neither_learns_nor_changes_its_mode(self):
        model = backbone(stochastic_depth=0.5).train()
        assert model.freeze_encoder() is model
        assert not any(parameter.requires_grad for parameter in model.parameters())
        model.eval().train()
        assert model.training and not model.encoder.training and not model.image_embedding.training
        inputs = torch.randn(2, 3, 8, 18)
        torch.testing.assert_close(model.encode_image(inputs), model.encode_image(inputs))

    def test_without_freezing_everything_changes_its_mode(self):
        model = backbone().eval().train()
        assert model.encoder.training and not model.encoder_frozen


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"text_attention": "both"}, "text_attention='both' must be one of"),
            ({"modality": "echo"}, "'echo' is not registered"),
            ({"input_shape": (3, 8, 16)}, r"input_shape=\(3, 8, 16\).*patch \(4, 6\)\. The nearest are \(8, 18\)"),
            ({"input_shape": (3, 1, 6)}, r"The nearest are \(4, 6\)"),
            ({"modality": "report", "input_shape": (13,)}, r"input_shape=\(13,\) must be at most text_positions=12"),
            ({"grid_2d": [3, 3]}, r"grid_2d=\(3, 3\) contradicts input_shape=\(3, 8, 18\), which gives \(2, 3\)"),
            ({"channels_2d": 1}, "channels_2d=1 contradicts"),
            ({"widht": 3}, "widht: not a size of a preset"),
        ],
    )
    def test_settings_that_do_not_fit(self, arguments, message):
        with pytest.raises(InputError, match=message):
            backbone(**arguments)

    def test_an_agreeing_grid_is_fine(self):
        assert backbone(grid_2d=[2, 3], channels_2d=3).sizes.grid_2d == (2, 3)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((2, 1, 8, 18), r"\(2, 1, 8, 18\) must be \(samples, 3, 2 spatial sizes\)"),
            ((2, 3, 8), r"\(2, 3, 8\) must be"),
            ((2, 3, 8, 16), r"input size \(8, 16\) must be a multiple of the patch \(4, 6\)"),
        ],
    )
    def test_inputs_of_another_shape(self, shape, message):
        with pytest.raises(InputError, match=message):
            backbone().encode_image(torch.zeros(shape))
