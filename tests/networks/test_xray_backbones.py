import pytest
import torch
import torch.nn.functional as F

from medcoss_components.data.modalities import get_modality
from medcoss_components.errors import InputError
from medcoss_components.networks.classification import ClassificationModel
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.xray_backbones import (
    ResNetBackbone,
    ResNetSizes,
    dilated_layer,
    input_intensity,
    xray_backbone,
)

SHAPE = (3, 64, 96)
SMALL = {"planes": (4, 6, 8, 10)}


def backbone(name="resnet_demo", shape=SHAPE, **overrides):
    sizes = overrides or ({} if name == "demo" else SMALL)
    network = xray_backbone(name, input_shape=shape, **sizes)
    initialise(network, torch.Generator().manual_seed(1))
    return network


def settled(network):
    """In evaluation mode, with statistics that are not those of the start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network.eval()


def images(count=2, shape=SHAPE, seed=3):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


class TestMaps:
    @pytest.mark.parametrize("name", ["resnet_demo", "demo"])
    @pytest.mark.parametrize(("stride", "last"), [(32, (2, 3)), (16, (4, 6))])
    def test_strides_and_channels(self, name, stride, last):
        network = backbone(name).eval()
        features = network(images(), output_stride=stride)
        assert [tuple(level.shape[2:]) for level in features.maps] == [(8, 12), (4, 6), last]
        assert tuple(level.shape[1] for level in features.maps) == network.channels
        assert features.pooled.shape == (2, network.width) and network.channels[-1] == network.width

    def test_sides_are_rounded_up(self):
        features = backbone().eval()(images(shape=(3, 50, 70)))
        assert [tuple(level.shape[2:]) for level in features.maps] == [(7, 9), (4, 5), (2, 3)]

    @pytest.mark.parametrize("stride", [16, 32])
    def test_the_vector_of_a_resnet_is_the_mean_of_the_last_map(self, stride):
        features = settled(backbone())(images(), output_stride=stride)
        cells = [features.maps[2][:, :, row, column] for row in range(2) for column in range(3)]
        if stride == 32:
            torch.testing.assert_close(features.pooled, sum(cells) / 6)
        else:
            torch.testing.assert_close(features.pooled, features.maps[2].flatten(2).mean(dim=2))

    def test_bfloat16_gives_a_float32_vector(self):
        network = settled(backbone())
        exact = network(images()).pooled
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pooled = network(images()).pooled
        assert pooled.dtype == torch.float32
        torch.testing.assert_close(pooled, exact, atol=0.1, rtol=0.1)


class TestDilation:
    @pytest.mark.parametrize("block", ["basic", "bottleneck"])
    @pytest.mark.parametrize("sides", [(64, 96), (50, 70), (33, 65)])
    def test_every_second_place_is_that_of_the_layer_itself(self, block, sides):
        """The strided layer is the dense one, read at even rows and columns."""
        sizes = ResNetSizes(block, (1, 1, 1, 2), planes=(2, 3, 4, 5))
        network = settled(ResNetBackbone(sizes, modality=get_modality("xray", input_shape=SHAPE)))
        pictures = images(shape=(3, *sides))
        plain, dense = network(pictures), network(pictures, output_stride=16)
        assert dense.maps[2].shape[2:] == dense.maps[1].shape[2:]
        torch.testing.assert_close(dense.maps[2][:, :, ::2, ::2], plain.maps[2], atol=1e-5, rtol=1e-5)

    def test_a_layer_without_stride_and_a_rate_of_1_is_the_layer(self):
        network = settled(backbone())
        maps = torch.rand(2, 4, 8, 12)
        torch.testing.assert_close(dilated_layer(network.layer1, maps, rate=1), network.layer1(maps))

    def test_the_same_weights_before_and_after(self):
        network = backbone().eval()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        first = network(images())
        network(images(), output_stride=16)
        again = network(images())
        assert torch.equal(first.maps[2], again.maps[2])
        assert before.keys() == network.state_dict().keys()
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    @pytest.mark.parametrize("name", ["resnet_demo", "demo"])
    def test_other_strides_are_refused(self, name):
        with pytest.raises(InputError, match="output_stride=8 must be one of 16, 32"):
            backbone(name)(images(), output_stride=8)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "tensors", "parameters"), [("resnet18", 120, 11_176_512), ("resnet50", 318, 23_508_032)]
    )
    def test_parameter_for_parameter_those_of_torchvision(self, name, tensors, parameters):
        """11,689,512 and 25,557,032 with the last layer of 1,000 classes, as published."""
        with torch.device("meta"):
            network = xray_backbone(name)
        assert len(network.state_dict()) == tensors
        assert sum(value.numel() for value in network.parameters()) == parameters
        names = {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight"}
        assert names | {"layer4.1.bn2.num_batches_tracked"} <= network.state_dict().keys()
        assert "layer2.0.downsample.0.bias" not in network.state_dict()

    def test_the_stride_of_a_bottleneck_stands_at_its_3x3_convolution(self):
        with torch.device("meta"):
            block = xray_backbone("resnet50").layer3[0]
        assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


class TestTransformer:
    def test_the_vector_is_what_the_classifier_of_a_chain_reads(self):
        network = backbone("demo").eval()
        classifier = ClassificationModel(preset="demo", modality="xray", input_shape=SHAPE, classes=2).eval()
        own = {name: value for name, value in network.state_dict().items()}
        classifier.load_state_dict(own, strict=False)
        torch.testing.assert_close(network(images()).pooled, classifier.embedding(images()))

    def test_the_middle_map_has_the_tokens_at_their_places(self):
        network = backbone("demo").eval()
        features = network(images())
        (tokens,) = network.encode_image(images())
        for row in range(4):
            for column in range(6):
                torch.testing.assert_close(features.maps[1][:, :, row, column], tokens[:, 1 + 6 * row + column])

    def test_the_last_map_is_the_maximum_and_the_first_interpolates(self):
        fine, middle, last = backbone("demo").eval()(images()).maps
        torch.testing.assert_close(last[:, :, 1, 2], middle[:, :, 2:4, 4:6].flatten(2).max(dim=2).values)
        torch.testing.assert_close(fine, F.interpolate(middle, size=(8, 12), mode="bilinear"))

    def test_training_mode_changes_nothing(self):
        network = backbone("demo")
        torch.testing.assert_close(network.train()(images()).pooled, network.eval()(images()).pooled)

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [({"stochastic_depth": 0.1}, "stochastic_depth=0.1"), ({"patch_2d": (8, 8)}, r"patch_2d=\(8, 8\)")],
    )
    def test_settings_that_have_no_place_are_refused(self, overrides, message):
        with pytest.raises(InputError, match=message):
            backbone("demo", **overrides)

    def test_nothing_to_freeze(self):
        network = backbone("demo")
        network.freeze_batch_norm()
        assert all(parameter.requires_grad for parameter in network.parameters())


class TestBatchNorm:
    def test_frozen_norms_stay_as_they_are_in_training(self):
        network = settled(backbone())
        expected = network(images()).pooled
        before = {name: value.clone() for name, value in network.state_dict().items()}
        network.freeze_batch_norm()
        features = network.train()(images())
        torch.testing.assert_close(features.pooled, expected)
        assert network.layer1.training and not network.bn1.training
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        features.pooled.sum().backward()
        assert network.bn1.weight.grad is None and network.conv1.weight.grad is not None

    def test_undone(self):
        network = backbone().train()
        network.freeze_batch_norm()
        network.freeze_batch_norm(False)
        assert network.bn1.training and network.bn1.weight.requires_grad
        before = network.bn1.running_mean.clone()
        network(images())
        assert not torch.equal(network.bn1.running_mean, before)

    def test_frozen_images_do_not_depend_on_their_batch(self):
        network = settled(backbone())
        network.freeze_batch_norm()
        together = network.train()(images())
        torch.testing.assert_close(network(images()[:1]).pooled[0], together.pooled[0], atol=1e-5, rtol=1e-4)


class TestFirstValues:
    @pytest.mark.parametrize("name", ["resnet_demo", "demo"])
    def test_the_generator_gives_every_value(self, name):
        network = backbone(name)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(float("nan"))
        initialise(network, torch.Generator().manual_seed(1))
        expected = backbone(name).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())

    def test_spread_of_the_kernels(self):
        """Fan out of the first convolution: 64 * 7 * 7."""
        network = backbone("resnet18", planes=(64, 8, 8, 8))
        assert network.conv1.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
        assert network.bn1.weight.eq(1).all()


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"name": "resnet34"}, "backbone='resnet34' is unknown. Use one of resnet18, resnet50"),
            ({"name": "resnet18", "width": 3}, "width: not a size of backbone resnet18. Sizes are layers, planes"),
            ({"name": "resnet18", "planes": (1, 2, 3)}, r"planes=\(1, 2, 3\) must hold 4 positive numbers"),
            ({"name": "resnet18", "layers": (1, 0, 1, 1)}, "layers="),
            ({"name": "resnet18", "modality": "ct", "input_shape": (1, 16, 32, 32)}, "read images"),
        ],
    )
    def test_settings(self, arguments, message):
        with pytest.raises(InputError, match=message):
            xray_backbone(**arguments)

    @pytest.mark.parametrize("shape", [(2, 1, 64, 64), (3, 64, 64)])
    @pytest.mark.parametrize("name", ["resnet_demo", "demo"])
    def test_images(self, shape, name):
        with pytest.raises(InputError, match=r"images: must be \(B, 3, H, W\)"):
            backbone(name)(torch.zeros(shape))

    def test_none_keeps_a_size(self):
        assert xray_backbone("resnet_demo", planes=None).sizes.planes == (16, 32, 64, 128)


class TestIntensity:
    @pytest.mark.parametrize("given", [None, {"standardise": "image"}, {"divide": 255.0}])
    def test_settings_are_taken_as_they_are(self, given):
        assert input_intensity(intensity=given, preset="resnet18") == given

    def test_auto_follows_the_backbone(self):
        assert input_intensity(intensity="auto", preset="resnet_demo") == {"standardise": "image"}
        assert input_intensity(intensity="auto", preset="vit_base") is None

    def test_another_word(self):
        with pytest.raises(InputError, match="intensity='zscore': must be auto"):
            input_intensity(intensity="zscore", preset="resnet18")
