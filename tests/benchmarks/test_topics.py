"""Every row runs in its smallest form and gives figures that make sense."""

from __future__ import annotations

import math

import pytest
import torch

import embedding  # isort: skip
import exemplars
import imports
import memory
import products
import reading
import run
import training

from medcoss_components.data.modalities import get_modality


def _check(row):
    assert all(math.isfinite(value) and value > 0 for value in (*row.straightforward, *row.ours))
    return row


@pytest.mark.parametrize("name", list(training.SETTINGS))
def test_training_rows(name, options, tiny_setting):
    modality = training.SETTINGS[name][0]
    row = _check(training.step_row(name, options, tiny_setting(modality, precision="bf16")))
    assert row.name == name and (row.target or 3) >= 3 and "batch 4" in row.what


@pytest.mark.parametrize("name", list(embedding.SETTINGS))
def test_embedding_rows(name, options, tiny_setting):
    _check(embedding.embedding_row(name, options, tiny_setting(embedding.SETTINGS[name][0])))


def test_product_rows(options, tiny_setting):
    row = _check(products.products_row("products_2d", options, tiny_setting("xray")))
    assert row.target is None and "GFLOP" in row.note


def test_products_of_a_layer_are_counted_forward_and_backward():
    layer = torch.nn.Linear(6, 10)
    with products.ProductCounter() as counter:
        layer(torch.randn(4, 6, requires_grad=True)).sum().backward()
    weight = products.Layout(6, 10, transposed=True)
    assert counter.found[products.Layout(4, 6, transposed=False), weight] == 1
    assert sum(counter.found.values()) == 3 and products.operations(counter.found) == 3 * 2 * 4 * 6 * 10
    assert weight.made(torch.bfloat16).stride() == (1, 6)


def test_reading_rows(options):
    ct, xray = get_modality("ct", input_shape=(1, 4, 24, 24)), get_modality("xray", input_shape=(3, 32, 32))
    assert _check(reading.reading_row("read_ct", options, entry=ct, count=20, workers=0)).ratio > 0
    _check(reading.reading_row("read_ct_whole", options, entry=ct, count=16, workers=0, side=48, slices=8))
    _check(reading.reading_row("read_xray", options, entry=xray, count=20, workers=0, side=64))


def test_exemplar_rows(options):
    row = _check(exemplars.selection_row(options, count=600, width=8))
    assert row.what == "exemplars of 600 x 8, 6 clusters"
    assert abs(exemplars.inertia_row(options).ratio) < 0.2


def test_memory_of_a_step_is_more_than_the_optimisers_state(options, monkeypatch):
    monkeypatch.setattr(memory, "measure_apart", lambda *arguments: float(memory.measure(*arguments)))
    row = memory.memory_row("memory_2d", options, preset="demo", batch=2)
    assert row.ours[0] > 1e6 and row.straightforward[0] > 1e6 and row.kind == "share"
    assert memory.memory_row("memory_2d_checkpointed", options, preset="demo", batch=2).ours[0] > 1e6


def test_memory_names_the_failure(monkeypatch):
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(RuntimeError, match="--measure ours xray 2 demo failed"):
        memory.measure_apart("ours", "xray", 2, "demo")


def test_torch_is_not_imported_by_the_package_or_its_help():
    assert imports.heavy_modules() == []
    assert "torch" not in imports.heavy_modules("--help")


def test_import_rows(options):
    assert imports.import_row("import", options).target == 1.0


def test_every_topic_is_in_the_table():
    names = {"train_2d", "read_ct", "exemplars", "exemplars_inertia", "embed_2d", "memory_text", "help", "rehearse_2d"}
    assert names <= set(run.ROWS)
