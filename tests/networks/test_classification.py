import pytest
import torch
import torch.nn.functional as F

from medcoss_components.errors import InputError
from medcoss_components.networks.classification import ClassificationModel, class_names
from medcoss_components.networks.initialisation import initialise

SIZES = {"width": 24, "depth": 2, "heads": 3, "vocabulary_size": 50, "text_positions": 12, "layer_scale": 0.5}
SIZES |= {"patch_2d": (4, 6), "patch_3d": (4, 6, 8)}
SHAPES = {"report": (9,), "xray": (3, 8, 18), "ct": (1, 8, 6, 24)}
CLASSES = ("normal", "pneumonia", "covid")


def model(modality="xray", **arguments):
    settings = {"classes": CLASSES, "input_shape": SHAPES[modality]} | SIZES | arguments
    network = ClassificationModel(preset="demo", modality=modality, **settings)
    initialise(network, torch.Generator().manual_seed(5))
    return network


def vary(network):
    """Give every parameter a value of its own, so that a part left out shows."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def norm(vector, layer):
    return F.layer_norm(vector, vector.shape[-1:], layer.weight, layer.bias, eps=1e-6)


def mlp(vector, head):
    return head.output(F.gelu(norm(head.hidden(vector), head.hidden_norm)))


class TestOutputs:
    """Heads against METHOD.md section 8, sample by sample and token by token."""

    def test_images(self, batch):
        network, inputs = vary(model()), batch("xray")
        (tokens,) = network.encode_image(inputs)
        for sample, logits in zip(tokens, network(inputs), strict=True):
            mean = sum(sample[1:]) / 6  # 2 x 3 patches behind the class token
            torch.testing.assert_close(logits, network.head.output(norm(mean, network.head.norm)))

    def test_volumes(self, batch):
        network, inputs = vary(model("ct")), batch("ct")
        (tokens,) = network.encode_image(inputs)
        for sample, logits in zip(tokens, network(inputs), strict=True):
            mean = sum(sample[1:]) / 6  # 2 x 1 x 3
            torch.testing.assert_close(logits, mlp(norm(mean, network.head.norm), network.head))

    def test_texts(self):
        network = vary(model("report"))
        ids = torch.tensor([[7, 8, 9, 10, 0, 0], [5, 6, 0, 0, 0, 0]])
        tokens = network.encode_text(ids)
        for sample, logits, real in zip(tokens, network(ids), (4, 2), strict=True):
            torch.testing.assert_close(logits, mlp(sum(sample[:real]) / real, network.head))

    def test_the_class_token_takes_part(self, batch):
        network, inputs = vary(model()), batch("xray")
        before = network(inputs)
        with torch.no_grad():
            network.image_embedding.class_token.add_(torch.arange(24.0))
        assert not torch.allclose(network(inputs), before)

    def test_padding_changes_nothing(self):
        """More padding, and what stands in the other texts of the batch."""
        network = vary(model("report"))
        alone = network(torch.tensor([[7, 8, 9]]))
        padded = network(torch.tensor([[7, 8, 9, 0, 0, 0], [5, 6, 7, 8, 9, 10]]))
        torch.testing.assert_close(padded[:1], alone)

    def test_a_text_without_words_is_finite(self):
        assert model("report").eval()(torch.zeros(2, 9, dtype=torch.int64)).isfinite().all()

    @pytest.mark.parametrize("modality", list(SHAPES))
    def test_other_input_sizes(self, modality):
        inputs = {
            "report": torch.randint(1, 50, (2, 12)),
            "xray": torch.rand(2, 3, 12, 12),
            "ct": torch.rand(2, 1, 4, 12, 16),
        }
        assert model(modality)(inputs[modality]).shape == (2, 3)

    @pytest.mark.parametrize("modality", list(SHAPES))
    def test_bfloat16_gives_float32_logits_that_are_near(self, modality, batch):
        network, inputs = vary(model(modality)), batch(modality)
        exact = network(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(inputs)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, exact, atol=0.1, rtol=0.1)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    @pytest.mark.parametrize("modality", list(SHAPES))
    def test_traced(self, modality, batch):
        network = vary(model(modality))
        seen, fresh = batch(modality, 1)[:1], batch(modality, 2)[:1]
        traced = torch.jit.trace(network, seen)
        torch.testing.assert_close(traced(fresh), network(fresh))


class TestTraining:
    @pytest.mark.parametrize("modality", list(SHAPES))
    def test_every_parameter_gets_a_gradient(self, modality, batch):
        """DistributedDataParallel stops where one gets none."""
        network = model(modality).train()
        network(batch(modality)).square().sum().backward()
        assert [name for name, value in network.named_parameters() if value.grad is None] == []

    @pytest.mark.parametrize("modality", list(SHAPES))
    def test_a_frozen_encoder_leaves_the_head(self, modality, batch):
        network = model(modality, stochastic_depth=0.5).freeze_encoder().train()
        network(batch(modality)).square().sum().backward()
        learning = {name for name, value in network.named_parameters() if value.grad is not None}
        assert learning == {name for name, _ in network.named_parameters() if name.startswith("head.")}
        assert network.head.training

    def test_depth_noise_of_a_row_concerns_this_row(self, batch):
        network, inputs, noise = model(stochastic_depth=0.5).train(), batch("xray"), torch.rand(3, 4)
        together = network(inputs, depth_noise=noise)
        for row in range(3):
            alone = network(inputs[row : row + 1], depth_noise=noise[row : row + 1])
            torch.testing.assert_close(alone[0], together[row])

    def test_a_model_learns(self):
        """Bright left or bright right."""
        network = model(classes=2).train()
        images = torch.zeros(8, 3, 8, 18)
        images[:4, :, :, :9], images[4:, :, :, 9:] = 1.0, 1.0
        images += 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        labels = torch.tensor([0] * 4 + [1] * 4)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        assert network.eval()(images).argmax(dim=1).equal(labels)


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


class TestNames:
    def test_numbers_stand_for_names(self):
        assert model(classes=3).classes == ("0", "1", "2")
        assert model(classes=["b", "a"]).classes == ("b", "a")
        assert class_names([1, 0]) == ("1", "0")  # as YAML reads them

    @pytest.mark.parametrize("classes", [1, 0, ["only"], ["a", "b", "a"], "normal", None, []])
    def test_other_classes_are_refused(self, classes):
        with pytest.raises(InputError, match="classes: "):
            class_names(classes)

    def test_parameter_names_of_the_heads(self):
        names = {
            modality: [name for name in model(modality).state_dict() if name.startswith("head.") and "bias" not in name]
            for modality in SHAPES
        }
        assert names == {
            "report": ["head.hidden.weight", "head.hidden_norm.weight", "head.output.weight"],
            "xray": ["head.norm.weight", "head.output.weight"],
            "ct": ["head.norm.weight", "head.hidden.weight", "head.hidden_norm.weight", "head.output.weight"],
        }
