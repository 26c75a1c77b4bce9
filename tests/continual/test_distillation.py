"""Feature distillation: the loss against a loop, and a teacher that never changes."""

import pytest
import torch
from torch import nn

from medcoss_components.continual.distillation import distillation_loss, frozen_teacher
from medcoss_components.errors import InputError


def features(seed, shape=(3, 5, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loss_by_loop(student, teacher, token_mask):
    """Oracle: sum over counted tokens of the mean over D, and their number."""
    total, count = 0.0, 0
    for sample in range(student.shape[0]):
        for token in range(student.shape[1]):
            if token_mask is None or token_mask[sample, token]:
                squares = [
                    (student[sample, token, d] - teacher[sample, token, d]).item() ** 2 for d in range(student.shape[2])
                ]
                total, count = total + sum(squares) / len(squares), count + 1
    return total, count


MASK = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]).bool()


@pytest.mark.parametrize("token_mask", [None, MASK, MASK.long()])
def test_loss_equals_the_loop(token_mask):
    student, teacher = features(0), features(1)
    total, count = distillation_loss(student, teacher, token_mask=token_mask, reduction="sum")
    expected = loss_by_loop(student, teacher, token_mask)
    assert (total.item(), count.item()) == pytest.approx(expected, rel=1e-6)
    mean = distillation_loss(student, teacher, token_mask=token_mask)
    assert mean.item() == pytest.approx(expected[0] / expected[1], rel=1e-6)


def test_without_a_mask_it_is_the_mean_squared_difference():
    student, teacher = features(0), features(1)
    torch.testing.assert_close(distillation_loss(student, teacher), nn.functional.mse_loss(student, teacher))


def test_ranks_add_up_to_the_whole_batch():
    student, teacher = features(0), features(1)
    parts = [
        distillation_loss(student[rows], teacher[rows], token_mask=MASK[rows], reduction="sum")
        for rows in (slice(0, 1), slice(1, 3))
    ]
    combined = sum(total for total, _ in parts) / sum(count for _, count in parts)
    torch.testing.assert_close(combined, distillation_loss(student, teacher, token_mask=MASK))


def test_uncounted_tokens_neither_count_nor_receive_gradient():
    student, teacher = features(0), features(1)
    student[0, 3] = float("nan")
    student.requires_grad_()
    teacher.requires_grad_()
    distillation_loss(student, teacher, token_mask=MASK).backward()
    assert torch.isfinite(student.grad).all()
    assert (student.grad.abs().sum(-1) > 0).equal(MASK)
    assert teacher.grad is None


def test_half_precision_features_are_compared_in_float32():
    student = torch.full((1, 2, 2), 300.0, dtype=torch.float16)
    loss = distillation_loss(student, torch.zeros_like(student))
    assert loss.dtype == torch.float32 and loss.item() == 90_000.0


def test_no_counted_token_gives_zero():
    nothing = torch.zeros(3, 5)
    total, count = distillation_loss(features(0), features(1), token_mask=nothing, reduction="sum")
    assert (total.item(), count.item()) == (0.0, 0.0)
    assert distillation_loss(features(0), features(1), token_mask=nothing).item() == 0.0


def test_wrong_arguments_are_named():
    with pytest.raises(InputError, match=r"received \(3, 5, 4\) and \(3, 6, 4\)"):
        distillation_loss(features(0), features(0, (3, 6, 4)))
    with pytest.raises(InputError, match=r"token_mask: expected shape \(3, 5\), received \(5, 3\)"):
        distillation_loss(features(0), features(1), token_mask=MASK.T)
    with pytest.raises(InputError, match="received 'none'"):
        distillation_loss(features(0), features(1), reduction="none")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))

    def features(self, inputs):
        return self.layers(inputs)

    forward = features


def test_teacher_stays_in_eval_mode_whoever_calls_train():
    model = Network().train()
    teacher = frozen_teacher(model)
    parent = nn.ModuleDict({"student": model, "teacher": teacher}).train()
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert parent["student"].training and model.layers[1].training


def test_teacher_is_a_copy_that_takes_no_gradient():
    model, inputs = Network(), features(0, (4, 3))
    model(inputs).sum().backward()
    teacher = frozen_teacher(model)
    expected = teacher(inputs)
    assert torch.equal(expected, model.eval().features(inputs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(teacher.features(inputs), expected) and not expected.requires_grad
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())


def test_teacher_is_of_the_models_class_and_can_be_copied_again():
    teacher = frozen_teacher(frozen_teacher(Network()))
    assert isinstance(teacher, Network) and type(teacher).__name__ == "Network"
    assert list(teacher.state_dict()) == list(Network().state_dict())
    assert not teacher.train().training


class TestTeacherInTrainingMode:
    def test_keeps_its_mode(self):
        holder = nn.Module()
        holder.teacher = frozen_teacher(nn.Sequential(nn.Dropout(0.5)), mode="train")
        assert holder.teacher.training and holder.eval().teacher[0].training and holder.teacher.eval().training
        assert isinstance(holder.teacher, nn.Sequential)

    def test_learns_nothing(self):
        teacher = frozen_teacher(nn.Linear(2, 2), mode="train")
        assert not any(parameter.requires_grad for parameter in teacher.parameters())

    @pytest.mark.parametrize(("first", "second"), [("eval", "train"), ("train", "eval")])
    def test_of_a_teacher_takes_the_mode_asked_for(self, first, second):
        teacher = frozen_teacher(frozen_teacher(nn.Linear(2, 2), mode=first), mode=second)
        assert teacher.train().training == teacher.eval().training == (second == "train")
        assert type(teacher).__mro__[-2:] == nn.Linear.__mro__[-2:] and isinstance(teacher, nn.Linear)

    def test_other_mode_refused(self):
        with pytest.raises(InputError, match="mode: must be one of eval, train, received 'half'"):
            frozen_teacher(nn.Linear(1, 1), mode="half")
