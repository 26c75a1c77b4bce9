"""Parts that configs put together."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch

from medcoss_components.data.modalities import MODALITIES
from medcoss_components.engines import setup
from medcoss_components.engines.setup import (
    default_device,
    initialised_network,
    joint_datasets,
    main_process_first,
    prepared_dataset,
    register_modalities,
    rehearsal_buffers,
    stage_vocabulary,
    start_distributed,
    stop_distributed,
    task_network,
)
from medcoss_components.errors import InputError
from medcoss_components.networks.classification import ClassificationModel
from medcoss_components.networks.pretraining import PRETEXT_PREFIXES
from medcoss_components.weights import save_weights


class TestDevice:
    def test_cpu_without_a_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert default_device() == torch.device("cpu")

    def test_own_gpu_of_a_process(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert default_device() == torch.device("cuda", 0)
        monkeypatch.setenv("LOCAL_RANK", "3")
        assert default_device() == torch.device("cuda", 3)


class TestDistributed:
    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []
        monkeypatch.setattr(setup.idist, "initialize", lambda backend, **options: calls.append((backend, options)))
        monkeypatch.setattr(setup.idist, "finalize", lambda: calls.append("finalize"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(device))
        return calls

    def test_one_process_joins_nothing(self, calls):
        start_distributed(), stop_distributed()
        assert calls == []

    def test_gloo_without_gpus(self, calls, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        start_distributed(timeout_hours=2)
        assert calls == [("gloo", {"timeout": timedelta(hours=2)})]

    def test_nccl_on_the_own_gpu(self, calls, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        start_distributed()
        assert calls == [torch.device("cuda", 1), ("nccl", {"timeout": timedelta(hours=24)})]

    def test_more_processes_than_gpus(self, calls, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "3")
        monkeypatch.setenv("LOCAL_RANK", "2")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(InputError, match=r"--nproc_per_node: process 2 .* 2 are visible.*CUDA_VISIBLE_DEVICES="):
            start_distributed()
        assert calls == []

    def test_leaves_the_group(self, calls, monkeypatch):
        monkeypatch.setattr(setup.idist, "get_world_size", lambda: 2)
        monkeypatch.setenv("WORLD_SIZE", "2")
        start_distributed(), stop_distributed()
        assert calls == ["finalize"]

    @pytest.mark.parametrize(("rank", "expected"), [(0, ["block", "barrier"]), (1, ["barrier", "block"])])
    def test_main_process_first(self, rank, expected, monkeypatch):
        order = []
        monkeypatch.setattr(setup.idist, "get_rank", lambda: rank)
        monkeypatch.setattr(setup.idist, "barrier", lambda: order.append("barrier"))
        with main_process_first():
            order.append("block")
        assert order == expected


def test_register_modalities():
    entry = {"name": "ultrasound", "dimension": 2, "input_shape": [3, 32, 32], "intensity": "unit_range"}
    assert register_modalities([entry]) == ["ultrasound"]
    assert MODALITIES["ultrasound"].stored_shape == (3, 32, 32)
    assert register_modalities() == []


class TestPreparedDataset:
    def test_training_and_validation(self, make_store):
        training, validation = make_store("xray"), make_store("xray", "validation")
        assert (len(training), len(validation)) == (10, 2)
        assert training.modality.input_shape == (3, 8, 18)
        assert training.preparation_seconds >= 0

    def test_missing_validation_is_none_when_optional(self, manifests, store_dir):
        options = {"manifest": manifests["xray"], "modality": "xray", "store_dir": store_dir, "split": "testing"}
        assert prepared_dataset(**options, optional=True) is None
        with pytest.raises(InputError, match="testing"):
            prepared_dataset(**options)

    @pytest.mark.parametrize("manifest", [None, ""])
    def test_no_manifest_refused(self, manifest, store_dir):
        with pytest.raises(InputError, match="data_manifest: give the path"):
            prepared_dataset(manifest=manifest, modality="xray", store_dir=store_dir)

    def test_missing_manifest_refused(self, tmp_path):
        with pytest.raises(InputError, match="gone.json"):
            prepared_dataset(manifest=tmp_path / "gone.json", modality="xray", store_dir=tmp_path)

    def test_joint_datasets(self, manifests, store_dir, make_store):
        entries = [
            {"data_manifest": str(manifests[name]), "modality": make_store(name).modality.to_dict()}
            for name in ("ct", "xray")
        ]
        assert [len(store) for store in joint_datasets(entries, store_dir=store_dir, workers=1)] == [10, 10]
        assert joint_datasets([], store_dir=store_dir) == []

    def test_joint_dataset_with_its_own_preparation(self, manifests, store_dir, make_store):
        entry = {"data_manifest": str(manifests["ct"]), "modality": make_store("ct").modality.to_dict()}
        entry |= {"preparation": {"slices_stride": 3}}  # sub-volumes of 6 slices begin at 0, 3 and 6 of 12
        (store,) = joint_datasets([entry], store_dir=store_dir, workers=1)
        assert len(store) == 5 * 3


class TestVocabulary:
    def stage(self, manifests, folder, **options):
        options = {"manifest": manifests["report"], "modality": "report", "store_dir": folder, "size": 110} | options
        return stage_vocabulary(**options)

    def test_trained_on_the_training_split_once(self, manifests, tmp_path, monkeypatch):
        first = self.stage(manifests, tmp_path)
        monkeypatch.setattr(setup, "train_vocabulary", None)
        assert self.stage(manifests, tmp_path).hash == first.hash
        assert first.size <= 110 and "the" in first.tokens

    def test_carried_one_wins_over_training(self, manifests, vocabulary, tmp_path):
        vocabulary.save(tmp_path / "01_report" / "vocabulary.json")
        for start in (tmp_path / "01_report", tmp_path / "01_report" / "model.pt"):
            (tmp_path / "01_report" / "model.pt").touch()
            assert self.stage(manifests, tmp_path, init_weights=start).hash == vocabulary.hash

    def test_weights_without_one_are_warned_about(self, manifests, tmp_path, caplog):
        self.stage(manifests, tmp_path, init_weights=tmp_path / "published.pth")
        assert "published.pth: no vocabulary.json stands beside these weights" in caplog.text
        caplog.clear()
        self.stage(manifests, tmp_path)
        assert caplog.text == ""

    def test_given_one_wins_over_the_carried(self, manifests, vocabulary, texts, tmp_path):
        from medcoss_components.text.vocabulary import train_vocabulary

        vocabulary.save(tmp_path / "01_report" / "vocabulary.json")
        given = train_vocabulary(texts, size=90, path=tmp_path / "given.json")
        chosen = self.stage(
            manifests, tmp_path, init_weights=tmp_path / "01_report", vocabulary=tmp_path / "given.json"
        )
        assert chosen.hash == given.hash != vocabulary.hash

    def test_images_carry_it_on(self, manifests, vocabulary, tmp_path):
        vocabulary.save(tmp_path / "vocabulary.json")
        assert self.stage(manifests, tmp_path, modality="xray", init_weights=tmp_path).hash == vocabulary.hash

    def test_tasks_on_images_do_not(self, manifests, vocabulary, tmp_path):
        vocabulary.save(tmp_path / "vocabulary.json")
        options = {"init_weights": tmp_path, "carry": False}
        assert self.stage(manifests, tmp_path, modality="xray", **options) is None
        assert self.stage(manifests, tmp_path, **options).hash == vocabulary.hash

    def test_images_alone_have_none(self, manifests, tmp_path):
        assert self.stage(manifests, tmp_path, modality="xray") is None
        assert self.stage(manifests, tmp_path, modality="xray", init_weights=tmp_path) is None

    def test_none_is_trained_where_weights_are_read(self, manifests, tmp_path):
        with pytest.raises(InputError, match="no vocabulary.json stands beside the weights .*01_report"):
            self.stage(manifests, tmp_path, init_weights=tmp_path / "01_report", train=False)
        assert self.stage(manifests, tmp_path, modality="xray", train=False) is None

    def test_missing_file_refused(self, manifests, tmp_path):
        with pytest.raises(InputError, match="gone.json"):
            self.stage(manifests, tmp_path, vocabulary=tmp_path / "gone.json")


class TestNetwork:
    def test_seed_decides_the_first_weights(self, tiny_network):
        networks = [
            initialised_network(network=tiny_network(seed=start), seed=seed) for start, seed in ((1, 0), (2, 0), (1, 5))
        ]
        states = [network.state_dict()["encoder.blocks.0.attention.qkv.weight"] for network in networks]
        assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])

    @pytest.mark.parametrize("parts", ["encoder", "all"])
    def test_weights_are_loaded_heads_only_if_asked(self, parts, tiny_network, tmp_path):
        saved = tiny_network(seed=3)
        save_weights(tmp_path / "model.pt", saved.state_dict())
        network = initialised_network(network=tiny_network(), init_weights=tmp_path, seed=0, parts=parts)
        for name, value in network.state_dict().items():
            constant = value.unique().numel() == 1
            same = torch.equal(value, saved.state_dict()[name])
            assert same == (parts == "all" or not name.startswith(PRETEXT_PREFIXES)) or constant, name

    def test_encoder_of_another_size_refused(self, tiny_network, tmp_path):
        save_weights(tmp_path / "model.pt", tiny_network(width=12).state_dict())
        with pytest.raises(InputError, match="model.pt"):
            initialised_network(network=tiny_network(), init_weights=tmp_path / "model.pt")

    def test_what_may_be_missing_is_named(self, tiny_network, tmp_path):
        state = tiny_network(seed=3).state_dict()
        del state["image_embedding.class_token"]
        save_weights(tmp_path / "model.pt", state)
        options = {"init_weights": tmp_path, "allow_initialised": ["image_embedding.class_token"]}
        network = initialised_network(network=tiny_network(), **options)
        assert "left at initialisation" in network.load_report and "class_token" in network.load_report
        with pytest.raises(InputError, match="class_token"):
            initialised_network(network=tiny_network(), **options | {"allow_initialised": []})

    @pytest.mark.parametrize("frozen", [False, True])
    def test_task_network_can_freeze_its_encoder(self, frozen, tiny_sizes):
        network = ClassificationModel(preset="demo", modality="report", input_shape=(14,), classes=2, **tiny_sizes)
        network = task_network(network=network, freeze_encoder=frozen, seed=1)
        trained = {name.split(".")[0] for name, value in network.named_parameters() if value.requires_grad}
        assert trained == ({"head"} if frozen else {"head", "encoder", "text_embedding"})


class TestBuffers:
    @pytest.fixture
    def stage_folder(self, make_stage, tmp_path, no_pictures):
        return make_stage(tmp_path / "stage", validated=False).run()

    @pytest.mark.parametrize("as_list", [True, False])
    def test_from_a_stage_folder_or_file(self, stage_folder, as_list):
        buffers = [stage_folder] if as_list else stage_folder / "buffer.json"
        (view,) = rehearsal_buffers(buffers=buffers)
        assert len(view) == 3 and view.modality.name == "xray"

    @pytest.mark.parametrize("strategy", ["sequential", "joint"])
    def test_not_read_without_rehearsal(self, strategy, tmp_path):
        assert rehearsal_buffers(buffers=[tmp_path / "gone.json"], strategy=strategy) == []

    def test_missing_one_refused(self, tmp_path):
        with pytest.raises(InputError, match="gone.json"):
            rehearsal_buffers(buffers=[tmp_path / "gone.json"])

    def test_none(self):
        assert rehearsal_buffers() == []
