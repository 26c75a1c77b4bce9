"""Cross-task memorization: cached features stay fixed, and both terms pull as the equation says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medcoss_components.continual.memorization import FeatureMemory, WeightAnchor, feature_term
from medcoss_components.errors import InputError


class Embedding:
    """Features (row, 2 * row), counting how often it is asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, rows):
        self.calls.append(rows.tolist())
        return torch.tensor([[row, 2 * row] for row in rows.tolist()], dtype=torch.bfloat16)


class TestFeatureMemory:
    def test_made_once_in_the_order_of_the_data(self, tmp_path):
        embed = Embedding()
        memory = FeatureMemory(tmp_path / "features")
        path = memory.fill("lungs", count=5, key="0123456789abcdef" * 4, embed=embed, batch_size=2)
        assert path == tmp_path / "features" / "lungs-0123456789abcdef.npy" and path.is_file()
        assert embed.calls == [[0, 1], [2, 3], [4]]
        assert memory["lungs"].dtype == np.float32
        assert memory.rows("lungs", torch.tensor([3, 1])).tolist() == [[3, 6], [1, 2]]
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]

    def test_files_that_are_there_are_not_touched(self, tmp_path):
        path = FeatureMemory(tmp_path).fill("lungs", count=3, key="k", embed=Embedding())
        before, embed = (path.read_bytes(), path.stat().st_mtime_ns), Embedding()
        again = FeatureMemory(tmp_path)
        again.fill("lungs", count=3, key="k", embed=embed)
        assert embed.calls == [] and (path.read_bytes(), path.stat().st_mtime_ns) == before
        assert again.rows("lungs", np.array([2])).tolist() == [[2, 4]]

    def test_cannot_be_written_to(self, tmp_path):
        memory = FeatureMemory(tmp_path)
        memory.fill("lungs", count=3, key="k", embed=Embedding())
        with pytest.raises(ValueError, match="read-only"):
            memory["lungs"][0] = 7
        memory.rows("lungs", np.array([0]))[0] = 7  # a copy
        assert memory.rows("lungs", np.array([0])).tolist() == [[0, 0]]

    def test_another_key_is_another_file(self, tmp_path):
        memory, embed = FeatureMemory(tmp_path), Embedding()
        paths = {memory.fill("lungs", count=3, key=key, embed=embed) for key in ("one", "two")}
        assert len(paths) == 2 and len(embed.calls) == 2

    def test_unknown_task_refused(self, tmp_path):
        memory = FeatureMemory(tmp_path)
        memory.fill("lungs", count=3, key="k", embed=Embedding())
        with pytest.raises(InputError, match=r"task 'hand': has no cached features; there are those of \['lungs'\]"):
            memory.rows("hand", np.array([0]))

    def test_file_of_other_data_refused(self, tmp_path):
        memory = FeatureMemory(tmp_path)
        memory.fill("lungs", count=3, key="k", embed=Embedding())
        with pytest.raises(InputError, match=r"features of 4 images, holds float32 of shape \(3, 2\)"):
            memory.fill("lungs", count=4, key="k", embed=Embedding())

    def test_damaged_file_refused(self, tmp_path):
        memory = FeatureMemory(tmp_path)
        memory.path("lungs", "k").write_bytes(b"nothing")
        with pytest.raises(InputError, match="no file of features .* Delete the file"):
            memory.fill("lungs", count=3, key="k", embed=Embedding())


def finite_differences(loss, values, step=1e-6):
    """Central differences of a float64 loss by every entry of ``values``."""
    found = torch.zeros_like(values)
    for place in np.ndindex(tuple(values.shape)):
        for sign in (1, -1):
            moved = values.clone()
            moved[place] += sign * step
            found[place] += sign * float(loss(moved)) / (2 * step)
    return found


class TestFeatureTerm:
    def test_by_hand(self):
        """0.5 * ((0 + 4) + (1 + 1)), as a sum over two samples."""
        term = feature_term(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), 0.5)
        assert (term.kind, float(term.total), float(term.count)) == ("feature", 3.0, 2.0)

    def test_gradient_is_that_of_the_equation(self):
        """Through f(x; w) = x w: checked against differences of lam_f * mean ||x w - c||^2 in double precision."""
        torch.manual_seed(0)
        images, cached = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
        weights = torch.randn(3, 2, dtype=torch.float64)

        def loss(values):
            return 0.7 * (images @ values - cached).square().sum(dim=1).mean()

        trained = weights.float().requires_grad_()
        term = feature_term(images.float() @ trained, cached.float(), 0.7)
        (gradient,) = torch.autograd.grad(term.total / term.count, trained)
        assert torch.allclose(gradient.double(), finite_differences(loss, weights), rtol=1e-4, atol=1e-4)

    def test_no_gradient_reaches_the_cached_features(self):
        cached = torch.zeros(2, 2)
        feature_term(torch.ones(2, 2, requires_grad=True), cached, 1.0).total.backward()
        assert cached.grad is None


class TestWeightAnchor:
    @pytest.fixture
    def backbone(self):
        module = nn.Linear(2, 1)
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[1.0, 2.0]]))
            module.bias.zero_()
        return module

    def test_by_hand(self, backbone):
        anchor = WeightAnchor(backbone)
        anchor.enter(0)
        assert anchor.term(0.5).total.item() == 0
        with torch.no_grad():
            backbone.weight += torch.tensor([[3.0, -1.0]])
            backbone.bias += 2.0
        term = anchor.term(0.5)  # 0.5 * (9 + 1 + 4)
        assert (term.kind, term.total.item(), float(term.count)) == ("anchor", 7.0, 1.0)

    def test_moves_only_when_a_visit_begins(self, backbone):
        anchor = WeightAnchor(backbone)
        anchor.enter(0)
        with torch.no_grad():
            backbone.bias += 2.0
        anchor.enter(0)
        assert anchor.term(1.0).total.item() == 4
        anchor.enter(1)
        assert anchor.term(1.0).total.item() == 0

    def test_frozen_backbone_has_no_penalty_on_its_own_device(self):
        anchor = WeightAnchor(nn.Linear(2, 1, device="meta").requires_grad_(False))
        anchor.enter(0)
        assert anchor.term(1.0).total.device.type == "meta"

    def test_gradient_is_that_of_the_equation(self, backbone):
        anchor = WeightAnchor(backbone)
        anchor.enter(0)
        with torch.no_grad():
            backbone.weight += torch.tensor([[0.3, -0.4]])
        anchor.term(0.25).total.backward()
        start = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        wanted = finite_differences(
            lambda values: 0.25 * (values - start).square().sum(), backbone.weight.detach().double()
        )
        assert torch.allclose(backbone.weight.grad.double(), wanted, atol=1e-6)
        assert backbone.bias.grad.item() == 0

    def test_frozen_parameters_are_left_out(self, backbone):
        backbone.requires_grad_(False)
        anchor = WeightAnchor(backbone)
        anchor.enter(0)
        assert anchor.term(1.0).total.item() == 0 and anchor.values == {}

    def test_state_round_trip(self, backbone):
        anchor = WeightAnchor(backbone)
        anchor.enter(4)
        with torch.no_grad():
            backbone.bias += 2.0
        restored = WeightAnchor(backbone)
        restored.load_state_dict(anchor.state_dict())
        restored.enter(4)
        assert restored.term(1.0).total.item() == 4

    def test_needs_a_visit(self, backbone):
        with pytest.raises(InputError, match=r"no visit has begun; call enter\(\)"):
            WeightAnchor(backbone).term(1.0)
