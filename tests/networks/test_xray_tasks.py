import pickle

import pytest
import torch
import torch.nn.functional as F

from medcoss_components.errors import InputError
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.xray_heads import category_names
from medcoss_components.networks.xray_tasks import (
    MultiTaskXrayModel,
    XrayClassificationModel,
    XrayDetectionModel,
    XraySegmentationModel,
)

SHAPE = (3, 64, 96)
KINDS = ("classification", "segmentation", "detection")
BACKBONES = ("resnet_demo", "demo")
REGIONS = {"lung": [1, 2], "left": [2]}
CATEGORIES = ("tuberculosis", "nodule")
TARGETS = [
    {"boxes": torch.tensor([[10.0, 12.0, 44.0, 40.0]]), "labels": torch.tensor([1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


def model(kind, backbone="resnet_demo", **arguments):
    build = {
        "classification": lambda **given: XrayClassificationModel(classes=["normal", "pneumonia"], **given),
        "segmentation": lambda **given: XraySegmentationModel(regions=REGIONS, head_width=8, **given),
        "detection": lambda **given: XrayDetectionModel(categories=CATEGORIES, head_width=16, **given),
    }[kind]
    network = build(backbone=backbone, input_shape=SHAPE, **arguments)
    initialise(network, torch.Generator().manual_seed(5))
    return network


TASKS = {
    "chest": {"kind": "classification", "classes": ["normal", "pneumonia"]},
    "lungs": {"kind": "segmentation", "regions": REGIONS, "head_width": 8},
    "findings": {"kind": "detection", "categories": CATEGORIES, "head_width": 16},
}
TASK_OF = dict(zip(KINDS, TASKS, strict=True))


def multitask(backbone="resnet_demo", tasks=TASKS):
    network = MultiTaskXrayModel(backbone=backbone, input_shape=SHAPE, tasks=tasks)
    initialise(network, torch.Generator().manual_seed(6))
    return network


def images(count=2, seed=3):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def tensors(output):
    """The tensors of any network's output."""
    return [output] if torch.is_tensor(output) else [level for levels in output.values() for level in levels]


def scalar(network, output):
    """Something to go back from."""
    return output.square().sum() if torch.is_tensor(output) else sum(network.loss(output, TARGETS).values())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
class TestEveryNetwork:
    def test_outputs(self, kind, backbone):
        output = model(kind, backbone).eval()(images())
        if kind == "detection":
            assert [level.shape[1] for level in output["classification"]] == [9 * 2] * 5
        else:
            assert output.shape == {"classification": (2, 2), "segmentation": (2, 2, 64, 96)}[kind]
        assert all(value.dtype == torch.float32 for value in tensors(output))

    def test_bfloat16_gives_float32_that_is_near(self, kind, backbone):
        network = model(kind, backbone).eval()
        exact = tensors(network(images()))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = tensors(network(images()))
        for value, expected in zip(found, exact, strict=True):
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected, atol=0.15, rtol=0.15)

    def test_names(self, kind, backbone):
        starts = {name.split(".")[0] for name in model(kind, backbone).state_dict()}
        assert starts == {"backbone", "head"}

    def test_every_parameter_gets_a_gradient(self, kind, backbone):
        network = model(kind, backbone).train()
        scalar(network, network(images())).backward()
        assert [name for name, value in network.named_parameters() if value.grad is None] == []

    def test_a_frozen_backbone_leaves_the_head(self, kind, backbone):
        network = model(kind, backbone).freeze_encoder().train()
        before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
        scalar(network, network(images())).backward()
        learning = {name for name, value in network.named_parameters() if value.grad is not None}
        assert learning == {name for name, _ in network.named_parameters() if name.startswith("head.")}
        assert network.encoder_frozen and network.head.training and not network.backbone.training
        assert all(torch.equal(value, before[name]) for name, value in network.backbone.state_dict().items())

    def test_the_generator_gives_every_value(self, kind, backbone):
        network = model(kind, backbone)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(float("nan"))
        initialise(network, torch.Generator().manual_seed(5))
        expected = model(kind, backbone).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())

    def test_images_of_a_batch_do_not_mix(self, kind, backbone):
        network = model(kind, backbone).eval()
        together = tensors(network(images()))
        for row in range(2):
            alone = tensors(network(images()[row : row + 1]))
            for value, expected in zip(alone, together, strict=True):
                torch.testing.assert_close(value[0], expected[row], atol=1e-5, rtol=1e-4)

    def test_modality_and_sizes(self, kind, backbone):
        network = model(kind, backbone)
        assert (network.modality.name, network.modality.input_shape) == ("xray", SHAPE)
        assert network.sizes is network.backbone.sizes and network.backbone_name == backbone
        pickle.loads(pickle.dumps(network))

    def test_the_multi_task_network_gives_the_same(self, kind, backbone):
        network, many = model(kind, backbone).eval(), multitask(backbone).eval()
        task = TASK_OF[kind]
        many.backbone.load_state_dict(network.backbone.state_dict())
        many.heads[task].load_state_dict(network.head.state_dict())
        output, pooled = many(images(), task=task)
        for value, expected in zip(tensors(output), tensors(network(images())), strict=True):
            torch.testing.assert_close(value, expected)
        assert torch.equal(pooled, many.embedding(images(), task)) and pooled.dtype == torch.float32


class TestClassification:
    def test_one_linear_layer_on_the_mean(self):
        network = model("classification").eval()
        pooled = network.backbone(images()).pooled
        torch.testing.assert_close(network(images()), network.head.output(pooled))
        torch.testing.assert_close(network.embedding(images()), pooled)
        assert list(network.head.state_dict()) == ["output.weight", "output.bias"]

    def test_layer_norm_for_a_transformer(self):
        network = model("classification", "demo").eval()
        pooled = network.backbone(images()).pooled
        expected = network.head.output(F.layer_norm(pooled, (128,), eps=1e-6))
        torch.testing.assert_close(network(images()), expected)

    def test_a_model_learns(self):
        """Bright left or bright right."""
        network = model("classification").train()
        given = torch.zeros(8, *SHAPE)
        given[:4, :, :, :48], given[4:, :, :, 48:] = 1.0, 1.0
        labels = torch.tensor([0] * 4 + [1] * 4)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(8):
            optimizer.zero_grad()
            F.cross_entropy(network(given), labels).backward()
            optimizer.step()
        assert network(given).argmax(dim=1).equal(labels)


class TestSegmentation:
    def test_the_deepest_map_has_stride_16(self):
        network, seen = model("segmentation").eval(), []
        network.head.refinement.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
        network(images())
        assert seen == [(2, 8, 4, 6)]

    def test_one_image_trains(self):
        network = model("segmentation").train()
        assert network(images(1)).shape == (1, 2, 64, 96)

    def test_other_sizes(self):
        assert model("segmentation").eval()(torch.rand(1, 3, 50, 70)).shape == (1, 2, 50, 70)

    def test_regions(self):
        assert model("segmentation").regions == REGIONS


class TestDetection:
    def test_a_model_finds_the_box_that_it_has_seen(self):
        network = model("detection").train()
        network.backbone.freeze_batch_norm()
        given = torch.zeros(1, *SHAPE)
        given[:, :, 20:44, 30:70] = 1.0
        truth = [{"boxes": torch.tensor([[30.0, 20.0, 70.0, 44.0]]), "labels": torch.tensor([1])}]
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        first = None
        for _ in range(30):
            optimizer.zero_grad()
            loss = sum(network.loss(network(given), truth).values())
            loss.backward()
            optimizer.step()
            first = first or loss.item()
        assert loss.item() < 0.5 * first
        (found,) = network.eval().detections(network(given), SHAPE[1:])
        assert found["labels"][0] == 1
        left, top, right, bottom = found["boxes"][0].tolist()
        common = max(0, min(right, 70) - max(left, 30)) * max(0, min(bottom, 44) - max(top, 20))
        assert common / ((right - left) * (bottom - top) + 40 * 24 - common) > 0.5

    def test_the_exported_form_gives_boxes_and_probabilities(self):
        network = model("detection").eval()
        output = network.export_module().eval()(images())
        assert output.shape == (2, 9 * (96 + 24 + 6 + 2 + 1), 4 + 2)
        torch.testing.assert_close(output, network.head.candidates(network(images())))

    @pytest.mark.parametrize("given", [[], "tuberculosis", ["a", "a"], ["a", ""], 0, None])
    def test_other_categories_are_refused(self, given):
        with pytest.raises(InputError, match="categories: "):
            category_names(given)

    def test_numbers_stand_for_names(self):
        assert category_names(2) == ("0", "1") and category_names(["one"]) == ("one",)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("kind", "backbone"),
    [("classification", "resnet_demo"), ("segmentation", "resnet_demo"), ("detection", "resnet_demo")]
    + [("segmentation", "demo")],
)
def test_traced(kind, backbone):
    network = model(kind, backbone).eval()
    network = network.export_module() if kind == "detection" else network
    with torch.no_grad():
        traced = torch.jit.trace(network, images(1, seed=1))
        torch.testing.assert_close(traced(images(1, seed=2)), network(images(1, seed=2)))


class TestMultiTask:
    def test_names(self):
        names = multitask().state_dict()
        heads = {name.split(".")[1] for name in names if name.startswith("heads.")}
        assert heads == set(TASKS) and {name.split(".")[0] for name in names} == {"backbone", "heads"}
        assert "heads.chest.output.weight" in names

    def test_outputs_are_named(self):
        assert multitask().tasks == {
            "chest": {"kind": "classification", "classes": ("normal", "pneumonia")},
            "lungs": {"kind": "segmentation", "regions": REGIONS},
            "findings": {"kind": "detection", "categories": CATEGORIES},
        }

    def test_a_step_of_one_task_concerns_its_head_alone(self):
        network = multitask().train()
        output, pooled = network(images(), task="findings")
        (sum(network.heads["findings"].loss(output, TARGETS).values()) + pooled.square().mean()).backward()
        heads = {
            name.split(".")[1]
            for name, value in network.heads.named_parameters(prefix="heads")
            if value.grad is not None
        }
        assert heads == {"findings"}
        assert all(value.grad is not None for value in network.backbone.parameters())

    def test_the_head_gives_detections(self):
        network = multitask().eval()
        output, _ = network(images(), task="findings")
        assert len(network.heads["findings"].detections(output, SHAPE[1:])) == 2

    def test_a_frozen_backbone(self):
        network = multitask().freeze_encoder().train()
        assert not network.backbone.training and network.heads["chest"].training

    @pytest.mark.parametrize(
        ("tasks", "message"),
        [
            ({}, "at least one task"),
            ({"chest": {"kind": "regression", "classes": 2}}, "kind 'regression' of chest must be one of"),
            ({"chest": {"kind": "classification"}}, "chest is of kind classification and needs classes"),
            ({"chest": {"kind": "classification", "classes": 1}}, "tasks: chest: classes: "),
            ({"chest": {"kind": "detection", "categories": 1, "width": 3}}, "tasks: chest: .*width"),
            ({"Chest X": {"kind": "classification", "classes": 2}}, "name 'Chest X' must be"),
            ({"keys": {"kind": "classification", "classes": 2}}, "name 'keys' must be"),
        ],
    )
    def test_other_tasks_are_refused(self, tasks, message):
        with pytest.raises(InputError, match=message):
            multitask(tasks=tasks)

    def test_an_unknown_task_is_refused(self):
        network = multitask()
        for call in (lambda: network(images(), task="hands"), lambda: network.embedding(images(), "hands")):
            with pytest.raises(InputError, match="task='hands' is unknown; the tasks are chest, lungs, findings"):
                call()
