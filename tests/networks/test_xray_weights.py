"""Where the weights of X-ray networks may come from, by the one key init_weights."""

import pytest
import torch

from medcoss_components.engines.optimisation import block_distances
from medcoss_components.engines.setup import task_network
from medcoss_components.errors import InputError
from medcoss_components.networks.classification import ClassificationModel
from medcoss_components.networks.presets import resolve_preset
from medcoss_components.networks.pretraining import PretrainingModel, encoder_state
from medcoss_components.networks.published import to_published
from medcoss_components.networks.xray_backbones import xray_backbone
from medcoss_components.networks.xray_tasks import MultiTaskXrayModel, XrayClassificationModel, XrayDetectionModel
from medcoss_components.weights import load_initial_weights, save_weights
from medcoss_components.weights_inspection import describe_weights

SHAPE = (3, 64, 96)
TINY = {
    "width": 24,
    "depth": 2,
    "heads": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "vocabulary_size": 50,
}
TASKS = {
    "chest": {"kind": "classification", "classes": 2},
    "lungs": {"kind": "segmentation", "regions": 1, "head_width": 8},
}


def classifier(backbone="resnet_demo", seed=0, **arguments):
    torch.manual_seed(seed)
    network = XrayClassificationModel(backbone=backbone, input_shape=SHAPE, classes=2, **arguments)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_mean"):
                value.copy_(torch.rand(value.shape))
    return network


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def backbone_of(network):
    return network.backbone.state_dict()


class TestBackbone:
    def test_from_the_first_step_of_muscle(self, tmp_path):
        """A file of ``backbone.*`` alone; batch norm statistics belong to it."""
        source = classifier(seed=1)
        path = tmp_path / "model.pt"
        save_weights(path, {f"backbone.{name}": value for name, value in backbone_of(source).items()})
        network = task_network(network=classifier(), init_weights=path)
        assert same(backbone_of(network), backbone_of(source))
        assert not torch.equal(network.head.output.weight, source.head.output.weight)

    def test_from_the_second_step_of_muscle(self):
        torch.manual_seed(1)
        source = MultiTaskXrayModel(backbone="resnet_demo", input_shape=SHAPE, tasks=TASKS)
        network = XrayDetectionModel(backbone="resnet_demo", input_shape=SHAPE, categories=1, head_width=16)
        report = load_initial_weights(network, source.state_dict())
        assert same(backbone_of(network), backbone_of(source))
        assert report.unexpected == () and all(name.startswith("heads.") for name in report.not_needed)
        assert set(report.untouched) == {name for name in network.state_dict() if name.startswith("head.")}

    def test_all_of_a_fine_tuned_network(self, tmp_path):
        source = classifier(seed=1)
        save_weights(tmp_path / "model.pt", source.state_dict())
        network = task_network(network=classifier(), init_weights=tmp_path, parts="all")
        assert same(network.state_dict(), source.state_dict())

    def test_frozen(self, tmp_path):
        save_weights(tmp_path / "model.pt", classifier(seed=1).state_dict())
        network = task_network(network=classifier(), init_weights=tmp_path, freeze_encoder=True)
        assert network.encoder_frozen and not any(value.requires_grad for value in network.backbone.parameters())

    @pytest.mark.parametrize("counted", [True, False])
    def test_under_the_names_of_torchvision(self, counted):
        """Its last layer is not needed; old files lack the step counts."""
        source = backbone_of(classifier(seed=1)) | {"fc.weight": torch.zeros(5, 128), "fc.bias": torch.zeros(5)}
        source = {name: value for name, value in source.items() if counted or "num_batches" not in name}
        network = classifier()
        report = load_initial_weights(network, source)
        assert report.not_needed == ("fc.bias", "fc.weight") and report.unexpected == ()
        loaded = backbone_of(network)
        assert all(torch.equal(loaded[name], value) for name, value in source.items() if not name.startswith("fc."))
        assert all(name.endswith("num_batches_tracked") for name in report.initialised)

    def test_of_another_kind_is_refused_and_changes_nothing(self):
        network = classifier()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        with pytest.raises(InputError, match=r"backbone.conv1.weight \(absent\).* Use the preset or backbone"):
            load_initial_weights(network, classifier("demo").state_dict())
        with pytest.raises(InputError, match=r"backbone.conv1.weight \(has"):
            load_initial_weights(network, classifier(planes=(4, 4, 4, 4)).state_dict())
        assert same(network.state_dict(), before)

    def test_a_bare_backbone_has_no_encoder_part(self):
        """Its names have no beginning to go by; loading nothing without a word would be worse."""
        network = xray_backbone("resnet_demo", input_shape=SHAPE)
        with pytest.raises(InputError, match="parts='encoder': the model has no tensor"):
            load_initial_weights(network, classifier(seed=1).state_dict())
        load_initial_weights(network, classifier(seed=1).state_dict(), parts="all")
        assert same(network.state_dict(), backbone_of(classifier(seed=1)))


class TestTransformer:
    """The encoder of a MedCoSS chain takes the ResNet's place."""

    def test_from_a_stage(self):
        torch.manual_seed(1)
        source = PretrainingModel(preset="demo")
        network = classifier("demo")
        report = load_initial_weights(network, source.state_dict())
        assert report.interpolated == ("backbone.image_embedding.tokenizers.2d.position",)
        assert report.unexpected == ()
        state, own = encoder_state(source), backbone_of(network)
        for name in ("encoder.blocks.3.mlp_out.weight", "image_embedding.class_token", "image_embedding.norm.bias"):
            assert torch.equal(own[name], state[name])

    def test_it_reads_images_as_the_classifier_of_the_chain_does(self):
        torch.manual_seed(1)
        source = PretrainingModel(preset="demo").state_dict()
        chain = ClassificationModel(preset="demo", modality="xray", input_shape=SHAPE, classes=2).eval()
        network = classifier("demo").eval()
        load_initial_weights(chain, source), load_initial_weights(network, source)
        network.head.load_state_dict(chain.head.state_dict())
        images = torch.rand(2, *SHAPE)
        torch.testing.assert_close(network(images), chain(images))

    def test_and_back(self):
        source = classifier("demo", seed=1)
        chain = ClassificationModel(preset="demo", modality="xray", input_shape=SHAPE, classes=2)
        load_initial_weights(chain, source.state_dict())
        own = backbone_of(source)
        assert all(torch.equal(value, own[name]) for name, value in encoder_state(chain).items())

    def test_of_another_depth_is_reported(self):
        report = load_initial_weights(classifier("demo"), PretrainingModel(preset="demo", depth=5).state_dict())
        assert report.unexpected and all(name.startswith("backbone.encoder.blocks.4.") for name in report.unexpected)

    def test_from_a_published_checkpoint(self):
        """The published names, cut down to the sizes of the demo."""
        torch.manual_seed(1)
        source = PretrainingModel(preset="vit_base", decoder_positions="learned", **TINY)
        sizes = resolve_preset("vit_base", **TINY)
        network = classifier("vit_base", width=24, depth=2, heads=2)
        report = load_initial_weights(network, to_published(source.state_dict(), sizes=sizes))
        assert report.initialised == ()
        expected = encoder_state(source)["encoder.blocks.1.mlp_out.weight"]
        assert torch.equal(backbone_of(network)["encoder.blocks.1.mlp_out.weight"], expected)


class TestLayerDecay:
    def test_resnet(self):
        """Four layers: the head 0, layer4 1, layer1 4, the first convolution 5."""
        below = block_distances(classifier())
        found = {name.split(".")[1]: number for name, number in below.items() if name.startswith("backbone.")}
        assert found == {"conv1": 5, "bn1": 5, "layer1": 4, "layer2": 3, "layer3": 2, "layer4": 1}
        assert below["head.output.weight"] == 0

    def test_transformer(self):
        below = block_distances(classifier("demo"))
        assert below["backbone.image_embedding.class_token"] == 5
        assert [below[f"backbone.encoder.blocks.{number}.mlp_in.weight"] for number in range(4)] == [4, 3, 2, 1]
        assert below["head.norm.weight"] == 0


class TestDescription:
    @pytest.mark.parametrize(
        ("backbone", "head", "text"),
        [
            ("resnet_demo", True, "backbone (ResNet) and head"),
            ("demo", True, "backbone (MedCoSS encoder) and head"),
            ("resnet_demo", False, "backbone (ResNet) alone"),
        ],
    )
    def test_one_task(self, backbone, head, text, tmp_path):
        state = classifier(backbone).state_dict()
        save_weights(
            tmp_path / "model.pt",
            {name: value for name, value in state.items() if head or name.startswith("backbone.")},
        )
        assert f"weights of this package, {text}\n" in describe_weights(tmp_path / "model.pt") + "\n"

    def test_several_tasks(self, tmp_path):
        state = MultiTaskXrayModel(backbone="resnet_demo", input_shape=SHAPE, tasks=TASKS).state_dict()
        save_weights(tmp_path / "model.pt", state)
        assert "backbone (ResNet) and heads of chest, lungs" in describe_weights(tmp_path / "model.pt")
