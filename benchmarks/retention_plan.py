"""What the retention experiment consists of: its settings, its runs, their order, and how long they take.

A run is a folder ``<root>/seed<S>/<name>``; its ``result.json`` says that it is finished. Every seed has a run
``first``, stage 1 alone, from whose weights the strategies branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medcoss_components.continual.strategies import STRATEGIES as KNOWN
from medcoss_components.continual.strategies import get_strategy
from medcoss_components.data.modalities import get_modality
from medcoss_components.errors import InputError
from medcoss_components.files import read_json, write_json

FIRST = "first"
FIRST_STRATEGY = "ewc"
"""What stage 1 runs under: the same updates as any other strategy without buffers, and it leaves the importance of
weights behind, which elastic weight consolidation needs."""
STRATEGIES = (
    "sequential",
    "medcoss",
    "experience_replay",
    "joint",
    "ewc",
    "cassle",
    "medcoss_without_mixup",
    "medcoss_random_exemplars",
    "medcoss_buffer_1",
    "medcoss_buffer_10",
    "medcoss_teacher_train",
    "medcoss_reversed",
)
FETCH = (
    "run `medcoss sample fetch DIR`, then `medcoss sample fetch DIR --task pubmed_sections --task xray_body_part "
    "--task ct_body_region --task pathology_tissue`"
)
RESULT = "result.json"
SETTINGS = "settings.json"
REHEARSAL_SHARE = 0.5
SECONDS = {1: 0.0032, 2: 0.0119, 3: 0.0125}
"""Dimension -> processor seconds per sample of a pretext update, demo preset, one thread; a first estimate only."""
REHEARSAL_COST = 0.7  # a rehearsal update compared with a pretext update, all modalities together
SCORING_SECONDS = 25.0  # of one stage


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the experiment is, as plain values; it is kept in ``settings.json`` of the root folder.

    Attributes:
        stages: in order; ``modality``, ``manifest``, ``updates``, ``batch_size``, ``learning_rate`` (peak) and
            optionally ``preparation``. The first one is the text that everything is measured on.
        probes: labelled sets; ``name``, ``modality``, ``manifest``, ``k`` (neighbours) and optionally ``preparation``.
            The first one is the text probe.
        few_labels: number of labels -> epochs of fine-tuning on them.
        network: preset and sizes that differ from it.
        stage_config, task_config: bundle configs of a stage and of the classification of the text probe.
        vocabulary_size: byte-pair pieces.
        precision: of training.
        warmup_share: part of the updates of a stage.
        buffer_ratio, cluster_ratio: of strategies that do not say otherwise.
        reference_samples: per image modality, for CKA and neighbour overlap.
        extra_modalities: registry entries that the package does not know.
    """

    stages: Sequence[Mapping[str, Any]]
    probes: Sequence[Mapping[str, Any]]
    few_labels: Mapping[str, int]
    stage_config: str
    task_config: str
    network: Mapping[str, Any]
    vocabulary_size: int = 4000
    precision: str = "bf16"
    warmup_share: float = 0.05
    buffer_ratio: float = 0.05
    cluster_ratio: float = 0.01
    reference_samples: int = 128
    few_labels_batch: int = 16
    few_labels_learning_rate: float = 5e-4
    extra_modalities: Sequence[Mapping[str, Any]] = ()

    def register(self) -> None:
        """Make modalities that the package does not know usable in this process."""
        for entry in self.extra_modalities:
            get_modality(dict(entry))


BUNDLES = Path(__file__).parent.parent / "bundles"
TEXT_PREPARATION = {"max_length": 48}


def standard_scale(sample_dir: str | Path) -> Scale:
    """The experiment as reported: five modalities of the sample data (``medcoss sample fetch``), two CPU cores.

    Image stages have small batches: 105 to 280 samples make 7 to 18 batches of 16 then, not 2 to 5, and so many more
    updates in the same time.
    """
    root = Path(sample_dir).resolve()
    images = {"xray": 384, "ct": 400, "mri": 392, "pathology": 396}
    text: dict[str, Any] = {"modality": "report", "updates": 2844, "batch_size": 64, "preparation": TEXT_PREPARATION}
    others: list[dict[str, Any]] = [
        {"modality": name, "updates": count, "batch_size": 16} for name, count in images.items()
    ]
    stages = [
        {**entry, "learning_rate": 2e-3, "manifest": str(root / entry["modality"] / "manifest.json")}
        for entry in (text, *others)
    ]
    probes: list[dict[str, Any]] = [
        {"name": "pubmed_sections", "modality": "report", "k": 20, "preparation": TEXT_PREPARATION},
        {"name": "xray_body_part", "modality": "xray", "k": 5},
        {"name": "ct_body_region", "modality": "ct", "k": 5},
        {"name": "pathology_tissue", "modality": "pathology", "k": 5},
    ]
    return Scale(
        stages=stages,
        probes=[{**probe, "manifest": str(root / "tasks" / probe["name"] / "manifest.json")} for probe in probes],
        few_labels={"100": 20, "500": 10},
        stage_config=str(BUNDLES / "medcoss_continual_pretraining/configs/stage.json"),
        task_config=str(BUNDLES / "pubmed_abstract_classification/configs/train.json"),
        network={"preset": "demo"},
    )


def open_scale(root: Path, sample_dir: str | Path | None) -> Scale:
    """The settings of a root folder; written there at the first call, and the same ever after.

    Raises:
        InputError: when the folder has none yet and no sample data is given, or the data is missing.
    """
    path = root / SETTINGS
    if path.is_file():
        return Scale(**read_json(path))
    if sample_dir is None:
        raise InputError(f"--sample-dir: is needed at the first call; {FETCH} and give DIR")
    scale = standard_scale(sample_dir)
    missing = [entry["manifest"] for entry in (*scale.stages, *scale.probes) if not Path(entry["manifest"]).is_file()]
    if missing:
        raise InputError(f"--sample-dir {sample_dir}: {missing[0]} is not there; {FETCH} and give DIR")
    write_json(path, asdict(scale))
    return Scale(**read_json(path))


@dataclass(frozen=True, order=True)
class Unit:
    """One run: a strategy with a seed, or stage 1 (``first``) of a seed."""

    seed: int
    name: str

    def __str__(self) -> str:
        return f"{self.seed}:{self.name}"

    @staticmethod
    def parse(text: str) -> Unit:
        """From "0:medcoss".

        Raises:
            InputError: for anything else.
        """
        seed, _, name = text.partition(":")
        if not seed.isdigit() or name not in (FIRST, *STRATEGIES):
            raise InputError(
                f"--only {text}: give SEED:NAME, for example 0:medcoss; names are {', '.join((FIRST, *STRATEGIES))}"
            )
        return Unit(int(seed), name)

    def folder(self, root: Path) -> Path:
        return root / f"seed{self.seed}" / self.name

    def done(self, root: Path) -> bool:
        return (self.folder(root) / RESULT).is_file()

    @property
    def branches(self) -> bool:
        """Whether the run starts from stage 1 of its seed; the others train all modalities themselves."""
        return self.name != FIRST and not starts_from_scratch(self.name)

    @property
    def needs(self) -> Unit | None:
        """The run that must be finished before."""
        return Unit(self.seed, FIRST) if self.branches else None


def starts_from_scratch(strategy: str) -> bool:
    """Whether the strategy cannot branch from a text stage: all at once, or the text last."""
    found = get_strategy(strategy)
    return found.single_stage or found.reverses_stages


def units(seeds: Iterable[int], names: Sequence[str] = STRATEGIES) -> list[Unit]:
    """All runs, one seed after the other, each with stage 1 and then the strategies in the given order.

    Raises:
        InputError: for a strategy that does not exist.
    """
    unknown = sorted(set(names) - set(KNOWN))
    if unknown:
        raise InputError(f"--strategies: {', '.join(unknown)} does not exist; use some of {', '.join(STRATEGIES)}")
    return [Unit(seed, name) for seed in seeds for name in (FIRST, *names)]


def with_needed(chosen: Iterable[Unit]) -> list[Unit]:
    """The chosen runs, each behind the one that it needs; none twice."""
    ordered: dict[Unit, None] = {}
    for unit in chosen:
        for part in (unit.needs, unit):
            if part is not None:
                ordered[part] = None
    return list(ordered)


def rehearses(strategy: str) -> bool:
    return get_strategy(strategy).uses_buffers


def epochs_for(updates: int, samples: int, batch_size: int, *, rehearsal: bool) -> int:
    """Epochs that make ``updates`` updates as nearly as whole epochs can, counted alike with and without rehearsal.

    An epoch with rehearsal has as many buffer batches as current ones (share 0.5), so it is twice as long; both forms
    are rounded to the longer one, so that every strategy makes the same number.

    >>> epochs_for(384, 244, 16, rehearsal=True), epochs_for(384, 244, 16, rehearsal=False)
    (12, 24)
    """
    batches = -(-samples // batch_size)
    doubled = max(1, round(updates / (2 * batches)))
    return doubled if rehearsal else 2 * doubled


def expected_seconds(unit: Unit, scale: Scale, root: Path) -> float:
    """From finished runs of the same name where there are some, else from figures measured once on one core."""
    finished = [
        read_json(path)["seconds"]["total"]
        for path in sorted(root.glob(f"seed*/{unit.name}/{RESULT}"))
        if path.is_file()
    ]
    if finished:
        return float(sum(finished) / len(finished))
    costs = [
        stage["updates"] * stage["batch_size"] * SECONDS[get_modality(stage["modality"]).dimension]
        for stage in scale.stages
    ]
    if unit.name == FIRST:
        return costs[0] + 4 * SCORING_SECONDS
    strategy = get_strategy(unit.name)
    stages = costs if starts_from_scratch(unit.name) else costs[1:]
    share = (1 + REHEARSAL_COST) / 2 if strategy.uses_buffers else 1.0
    return sum(stages) * share + SCORING_SECONDS * (1 if strategy.single_stage else len(stages))
