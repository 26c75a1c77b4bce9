"""What the pictures and columns of the report show and how to read them."""

from __future__ import annotations

from typing import NamedTuple


class Caption(NamedTuple):
    """Heading, text for screen readers and "how to read this" of one kind of picture."""

    heading: str
    alternative: str
    reading: str


COLUMNS = (
    "Pretext loss: first and last recorded value on training batches, in nats per hidden word for text and in "
    "squared error of normalised pixels for images, where 1.0 is what a patch of constant brightness would give. "
    "Validation: the same loss on held-out samples. Buffer: samples kept for later stages. Samples/s: throughput of"
    " training, rehearsal included. Time: all steps of the stage."
)

OVERVIEW = Caption(
    "Losses of all stages",
    "Pretext and rehearsal losses of all stages in a row",
    "Top: the pretext loss of each stage divided by its first recorded value, because words and pixels have "
    "different units; 0.8 means a fifth less than at the start. Bottom: how far the features of earlier modalities "
    "have moved from those of the stage before; lower is better kept. Bands are stages.",
)

RETENTION = Caption(
    "How well each modality is kept",
    "Scores of frozen features after every stage, one row a probe or a modality, one column an encoder",
    "Columns are encoders: before the chain, then after each stage. A frame marks the stage that learned the row's "
    "modality; numbers that fall to the right of it are forgetting. k-NN and logistic regression: share of test samples"
    " whose class is found from frozen features; compare with the first column and with the commonest class. CKA and "
    "neighbours kept: how alike the features of a modality are to those right after its own stage, 100 is unchanged. "
    "Logistic regression can stay high while features move far, so read it beside the others.",
)

MEASURES = (
    "Average accuracy: mean of the last column over the probes whose modality was learned. Backward transfer: mean "
    "change since the own stage; below zero, later stages have done harm. Forgetting: mean fall from the best score "
    "since the own stage; zero is best."
)

_WORDS = Caption(
    "Hidden words and guesses",
    "Sample sentences with hidden words boxed and the model's guess below each hidden word",
    "A boxed word was hidden from the model; below it stands the model's best guess, ✓ where it is right. Blind "
    "guessing is right once in as many words as the vocabulary has. Frequent words and punctuation are learned "
    "first; medical terms need long training. Bars in place of words: the words of these reports are not to be "
    "shown.",
)

_PATCHES = (
    "The model sees a quarter of the patches (middle; removed ones are pale blue) and predicts the others (right). "
    "Look for outlines and contrast that continue into removed patches. Mean and spread of each predicted patch are"
    " taken from the original, because the model predicts patches relative to them: what it adds is the structure "
    "inside a patch, so an untrained model already gives the coarse picture. A short training gives blurred "
    "structure."
)

_IMAGES = Caption(
    "Original, visible patches, reconstruction",
    "Rows of sample images: original, the quarter of the patches that the model sees, and the reconstruction",
    _PATCHES,
)

_VOLUMES = Caption(
    "Original, visible patches, reconstruction",
    "Rows of middle slices of sample volumes: original, visible quarter of the patches, and the reconstruction",
    f"Shown is the middle slice of each volume. {_PATCHES}",
)

_LOSS = Caption(
    "Loss curves",
    "Pretext loss, rehearsal loss and learning rate against the iteration",
    "Left: the pretext loss of this stage's modality; it should fall. Middle: rehearsal of earlier modalities, the "
    "mean squared distance between the features of the learning encoder and those of the frozen encoder of the "
    "stage before (or the replayed pretext loss); it starts near zero and stays small when little is forgotten. "
    "Right: learning rate, warm-up then cosine. Pale lines are recorded values, strong ones their running mean.",
)

_MAP = Caption(
    "Which samples are kept for rehearsal",
    "Scatter plot of the embeddings of all samples with the exemplars marked and joined to their cluster",
    "Each grey point is a sample, placed by the two strongest directions of its embedding. Orange points are the "
    "exemplars that later stages rehearse; lines join those of one k-means cluster. Good exemplars spread over the "
    "whole cloud. Two directions show only part of the variation: clusters that overlap here can be apart.",
)

_EXEMPLARS = Caption(
    "Exemplars",
    "Contact sheet of samples in the rehearsal buffer",
    "The samples (or an even selection of them) that represent this modality in later stages. They should show the "
    "variety of the data; many near-copies would mean that the buffer wastes its places.",
)


def caption_for(kind: str, dimension: int | None) -> Caption:
    """Caption of a picture kind for a modality of this dimension (1 text, 2 image, 3 volume, None unknown)."""
    reconstruction = _WORDS if dimension == 1 else _VOLUMES if dimension == 3 else _IMAGES
    return {"reconstruction": reconstruction, "loss": _LOSS, "buffer_map": _MAP, "exemplars": _EXEMPLARS}[kind]
