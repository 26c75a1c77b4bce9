"""What both trainers share: means over ranks, wrapping, mean losses."""

from __future__ import annotations

import pytest
import torch

from medcoss_components.continual.strategies import LossTerm
from medcoss_components.engines import trainer
from medcoss_components.engines.trainer import (
    ResumableTrainer,
    added_means,
    global_mean,
    loss_terms,
    module_of,
    wrap_for_ranks,
)


class TestGlobalMean:
    term = LossTerm("pretext", torch.tensor(6.0, requires_grad=True), torch.tensor(4.0))

    def test_one_process(self):
        loss, reported = global_mean(self.term)
        assert loss.item() == reported.item() == 1.5 and loss.requires_grad and not reported.requires_grad

    def test_nothing_counted_gives_zero(self):
        assert global_mean(LossTerm("pretext", torch.tensor(0.0), torch.tensor(0)))[0] == 0

    def test_two_processes(self, monkeypatch):
        """Sums 6 of 4 units here and 2 of 12 there: mean 0.5; the gradient of the average over ranks is that of it."""
        monkeypatch.setattr(trainer.idist, "get_world_size", lambda: 2)
        monkeypatch.setattr(trainer.idist, "all_reduce", lambda sums: sums + torch.tensor([2.0, 12.0]))
        loss, reported = global_mean(self.term)
        assert reported.item() == 0.5 and loss.item() == 6 * 2 / 16
        assert torch.autograd.grad(loss, self.term.total)[0].item() == 2 / 16

    def test_averaged_over_ranks_it_is_the_global_mean(self, monkeypatch):
        monkeypatch.setattr(trainer.idist, "get_world_size", lambda: 2)
        monkeypatch.setattr(trainer.idist, "all_reduce", lambda sums: torch.tensor([8.0, 16.0], dtype=torch.double))
        here, there = (
            global_mean(LossTerm("pretext", torch.tensor(total), torch.tensor(count)))[0]
            for total, count in ((6.0, 4.0), (2.0, 12.0))
        )
        assert (here + there) / 2 == 0.5


class TestAddedMeans:
    def term(self, added=()):
        return LossTerm("pretext", torch.tensor(6.0, requires_grad=True), torch.tensor(4.0), added=tuple(added))

    def test_alone_it_is_the_mean(self):
        loss, reported = added_means(self.term())
        assert loss.item() == 1.5 and reported == {"pretext": 1.5}

    def test_means_are_added_each_over_its_own_units(self):
        penalty = LossTerm("penalty", torch.tensor(0.25, requires_grad=True), torch.ones(()))
        squares = LossTerm("distillation", torch.tensor(8.0, requires_grad=True), torch.tensor(16.0))
        loss, reported = added_means(self.term([squares, penalty]))
        assert loss.item() == 1.5 + 0.5 + 0.25
        assert {kind: value.item() for kind, value in reported.items()} == {
            "pretext": 1.5,
            "distillation": 0.5,
            "penalty": 0.25,
        }
        loss.backward()
        assert squares.total.grad.item() == 1 / 16 and penalty.total.grad.item() == 1

    def test_two_processes_count_a_penalty_once(self, monkeypatch):
        """Both have the same penalty; the average of their gradients is its gradient."""
        monkeypatch.setattr(trainer.idist, "get_world_size", lambda: 2)
        monkeypatch.setattr(trainer.idist, "all_reduce", lambda sums: 2 * sums)
        penalty = LossTerm("penalty", torch.tensor(0.25, requires_grad=True), torch.ones(()))
        loss, reported = added_means(self.term([penalty]))
        loss.backward()
        assert penalty.total.grad.item() == 1 and reported["penalty"].item() == 0.25


class TestWrapping:
    def test_one_process_trains_the_network_itself(self):
        network = torch.nn.Linear(1, 1)
        assert wrap_for_ranks(network) is network and module_of(network) is network

    def test_several_processes_wrap_it(self, monkeypatch):
        wrapped = []
        monkeypatch.setattr(trainer.idist, "get_world_size", lambda: 2)
        monkeypatch.setattr(trainer.idist, "auto_model", lambda network, **options: wrapped.append(options) or network)
        wrap_for_ranks(torch.nn.Linear(1, 1))
        assert wrapped == [{"find_unused_parameters": True}]

    def test_module_inside_a_wrapper(self):
        network = torch.nn.Linear(1, 1)
        holder = torch.nn.Module()
        holder.module = network
        assert module_of(holder) is network


def test_loss_terms_are_means_by_modality_and_kind():
    outputs = [
        {"loss": torch.tensor(value), "modality": modality, "kind": kind}
        for value, modality, kind in [(1.0, "ct", "pretext"), (3.0, "ct", "pretext"), (5.0, "mri", "replay")]
    ]
    assert loss_terms(outputs) == {("ct", "pretext"): 2.0, ("mri", "replay"): 5.0}


def test_parts_of_a_loss_are_told_apart():
    parts = {"pretext": torch.tensor(1.0), "penalty": torch.tensor(0.5)}
    outputs = [{"loss": torch.tensor(1.5), "modality": "ct", "kind": "pretext", "parts": parts}]
    assert loss_terms(outputs) == {("ct", "pretext"): 1.0, ("ct", "penalty"): 0.5}


def test_a_trainer_says_what_the_loss_is():
    with pytest.raises(NotImplementedError):
        ResumableTrainer.loss_term(None, {})
