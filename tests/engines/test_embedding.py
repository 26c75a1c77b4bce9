"""Embeddings of a store: values, order, ranks and the Parquet file."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from medcoss_components.data.sampler import PretrainingLoader
from medcoss_components.data.transforms import to_model_input
from medcoss_components.engines import embedding
from medcoss_components.engines.embedding import EmbeddingEvaluator, embed_into_file, embed_source
from medcoss_components.errors import InputError

CPU = torch.device("cpu")


def one_by_one(network, source, pad_id):
    """Every sample alone: the mean of its tokens, padding left out."""
    vectors = []
    for row in range(len(source)):
        inputs = to_model_input(source.modality, torch.from_numpy(source.samples[row : row + 1]))
        if source.modality.dimension == 1:
            inputs = inputs[:, : int((inputs != pad_id).sum())]
        with torch.no_grad():
            vectors.append(network.eval().features(source.modality, inputs)[0].mean(dim=0))
    return torch.stack(vectors).numpy()


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def ranked(monkeypatch, rank, ranks):
    monkeypatch.setattr(embedding.idist, "get_rank", lambda: rank)
    monkeypatch.setattr(embedding.idist, "get_world_size", lambda: ranks)


class TestEmbedSource:
    @pytest.mark.parametrize("name", ["report", "xray", "ct"])
    def test_rows_are_those_of_single_samples(self, name, fake_source, tiny_network, vocabulary):
        network, source = tiny_network(), fake_source(name, 7)
        vectors = embed_source(network, source, device=CPU, precision="float32", batch_size=3, pad_id=vocabulary.pad_id)
        assert vectors.shape == (7, 24) and vectors.dtype == np.float32
        assert np.allclose(vectors, one_by_one(network, source, vocabulary.pad_id), atol=1e-5)

    def test_batch_size_does_not_matter(self, fake_source, tiny_network):
        network, source = tiny_network(), fake_source("ct", 7)
        options = {"device": CPU, "precision": "float32"}
        first, second = (embed_source(network, source, batch_size=size, **options) for size in (2, 7))
        assert np.allclose(first, second, atol=1e-5)

    @pytest.mark.parametrize("training", [True, False])
    def test_evaluates_and_puts_the_mode_back(self, training, fake_source, tiny_network):
        network = tiny_network(stochastic_depth=0.9).train(training)
        first, second = (embed_source(network, fake_source("xray", 4), device=CPU) for _ in range(2))
        assert np.array_equal(first, second) and network.training == training

    def test_next_batch_is_read_in_a_thread(self, fake_source, tiny_network):
        network, source, names = tiny_network(), fake_source("xray", 7), set()
        expected, real = embed_source(network, source, device=CPU, batch_size=2), source.gather
        source.gather = lambda rows: names.add(threading.current_thread().name) or real(rows)
        assert np.array_equal(embed_source(network, source, device=CPU, batch_size=2), expected)
        assert len(names) == 1 and readers() == [] and next(iter(names)).startswith("reader")

    def test_no_thread_is_left_after_an_error(self, fake_source, tiny_network, monkeypatch):
        monkeypatch.setattr(embedding, "embed_batch", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            embed_source(tiny_network(), fake_source("xray", 7), device=CPU, batch_size=2)
        assert readers() == []

    def test_bf16_is_close_and_stored_in_float32(self, fake_source, tiny_network):
        network, source = tiny_network(), fake_source("xray", 4)
        exact = embed_source(network, source, device=CPU, precision="float32")
        rounded = embed_source(network, source, device=CPU, precision="bf16")
        assert rounded.dtype == np.float32 and np.abs(exact - rounded).max() < 0.05


class TestEmbedIntoFile:
    def test_one_process(self, fake_source, tiny_network, tmp_path):
        network, source, path = tiny_network(), fake_source("xray", 5), tmp_path / "embeddings.npy"
        embed_into_file(network, source, path, device=CPU)
        assert np.array_equal(np.load(path), embed_source(network, source, device=CPU))
        assert [entry.name for entry in tmp_path.iterdir()] == ["embeddings.npy"]

    def test_three_processes_write_the_same_rows(self, fake_source, tiny_network, tmp_path, monkeypatch):
        network, source, path = tiny_network(), fake_source("xray", 5), tmp_path / "embeddings.npy"
        whole = embed_source(network, source, device=CPU, precision="float32")
        for rank in (2, 1, 0):
            ranked(monkeypatch, rank, 3)
            embed_into_file(network, source, path, device=CPU, precision="float32")
        assert np.allclose(np.load(path), whole, atol=1e-6)
        assert [entry.name for entry in tmp_path.iterdir()] == ["embeddings.npy"]

    def test_rank_without_a_sample(self, fake_source, tiny_network, tmp_path, monkeypatch):
        path = tmp_path / "embeddings.npy"
        for rank in (2, 1, 0):
            ranked(monkeypatch, rank, 3)
            embed_into_file(tiny_network(), fake_source("xray", 2), path, device=CPU)
        assert np.load(path).shape == (2, 24)


class TestEmbeddingEvaluator:
    def evaluator(self, source, network, **options):
        loader = PretrainingLoader(source, batch_size=3, shuffle=False)
        options = {"precision": "float32"} | options
        return EmbeddingEvaluator(device="cpu", val_data_loader=loader, network=network, **options)

    def test_several_processes_refused(self, fake_source, tiny_network, monkeypatch):
        source = fake_source("xray", 7)
        monkeypatch.setattr(embedding.idist, "get_world_size", lambda: 2)
        with pytest.raises(InputError, match="this is one of 2; start without torchrun"):
            self.evaluator(source, tiny_network())

    def test_writes_ids_and_vectors_in_store_order(self, fake_source, tiny_network, vocabulary, tmp_path):
        import pyarrow.parquet

        network, source, path = tiny_network(), fake_source("report", 7), tmp_path / "out" / "embeddings.parquet"
        evaluator = self.evaluator(source, network, path=path, vocabulary=vocabulary)
        evaluator.run()
        table = pyarrow.parquet.read_table(path)
        assert table.column_names == ["id", "modality", "embedding"]
        assert table["id"].to_pylist() == source.ids and set(table["modality"].to_pylist()) == {"report"}
        vectors = np.array(table["embedding"].to_pylist(), dtype=np.float32)
        assert np.allclose(vectors, one_by_one(network, source, vocabulary.pad_id), atol=1e-5)
        assert evaluator.state.metrics["embeddings"] == 7

    def test_second_run_starts_afresh(self, fake_source, tiny_network):
        evaluator = self.evaluator(fake_source("xray", 4), tiny_network())
        evaluator.run(), evaluator.run()
        assert evaluator.state.metrics["embeddings"] == 4 and len(evaluator.ids) == 4

    def test_other_file_types_refused(self, fake_source, tiny_network):
        with pytest.raises(InputError, match="parquet, received out.csv"):
            self.evaluator(fake_source("xray", 4), tiny_network(), path="out.csv")

    def test_text_needs_the_vocabulary(self, fake_source, tiny_network):
        with pytest.raises(InputError, match="vocabulary"):
            self.evaluator(fake_source("report", 4), tiny_network())
