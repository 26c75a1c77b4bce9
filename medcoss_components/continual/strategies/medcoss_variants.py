"""MedCoSS with one thing changed: what each part of the method is worth (METHOD.md sections 5 and 6)."""

from __future__ import annotations

from medcoss_components.continual.strategies.medcoss import MedCoSS


class WithoutMixup(MedCoSS):
    """Distillation on the buffer samples as they are, without intra-modal mixup."""

    name = "medcoss_without_mixup"
    mixup = False


class RandomExemplars(MedCoSS):
    """A buffer of as many samples, drawn at random instead of by k-means."""

    name = "medcoss_random_exemplars"
    exemplars = "random"


class SmallBuffer(MedCoSS):
    """A buffer of 1 % of each modality, whatever ``buffer_ratio`` says."""

    name = "medcoss_buffer_1"
    buffer_ratio = 0.01


class LargeBuffer(MedCoSS):
    """A buffer of 10 % of each modality, whatever ``buffer_ratio`` says."""

    name = "medcoss_buffer_10"
    buffer_ratio = 0.1


class TeacherInTrainingMode(MedCoSS):
    """A teacher that drops branches at random, with draws of its own, as the published code leaves it.

    There the teacher also reads another temporal position than the student by chance. Our tokenizers have one temporal
    position, so stochastic depth is all that is random in a teacher.
    """

    name = "medcoss_teacher_train"
    teacher_mode = "train"


class ReversedStages(MedCoSS):
    """The stages of a chain from the last to the first: does the order of the modalities matter?"""

    name = "medcoss_reversed"
    reverses_stages = True
