"""What the pictures and columns of MUSCLE's report show and how to read them."""

from __future__ import annotations

from medcoss_components.tracking.report_captions import Caption

INTRODUCTION = (
    "One backbone for X-rays of many body parts and data sets. First it learns, without labels, to recognise an image "
    "in two random views; then labelled tasks take turns, while cached features and the weights before each visit keep "
    "it from forgetting the others."
)

TASK_COLUMNS = (
    "Number: the metric that speaks for a task (auc: area under the ROC curve; dice: mean Dice; map: mean average "
    "precision at IoU 0.5 to 0.95), between 0 and 1, 1 is best. In brackets the 95 % bootstrap interval over patients."
)

CAPTIONS: dict[str, dict[str, Caption]] = {
    "contrastive": {
        "curves": Caption(
            "Loss, matches and spread",
            "Contrastive loss, share of keys found and spread of the features against the iteration",
            "The loss should fall and the share of views that find their partner should rise. When the spread goes to "
            "0, all images look alike to the network: it has collapsed.",
        ),
        "views": Caption(
            "What two views of an image look like",
            "Rows of images, each with the two random views that the networks compare",
            "Both views must still show the same anatomy. Cut or turned too much, there is nothing to recognise.",
        ),
        "datasets": Caption(
            "Embeddings by data set",
            "Scatter plot of the embeddings of images, coloured by data set",
            "Each point is an image, placed by the two strongest directions of its embedding. Data sets of the same "
            "body part that lie apart say that the network has learned scanners or film marks.",
        ),
        "body_parts": Caption(
            "Embeddings by body part",
            "Scatter plot of the embeddings of images, coloured by body part",
            "Body parts that form groups, though no label was seen, are what this step is for.",
        ),
    },
    "multitask": {
        "rounds": Caption(
            "Every task after every round",
            "Heat map of the validation numbers, rows are tasks, columns are rounds",
            "Read along a row: a number that falls after the task's own visit is forgetting. The tasks take turns in "
            "an order drawn anew for every round.",
        ),
        "losses": Caption(
            "Losses of the tasks",
            "Losses of every task over its visits, with the distances from cached features and earlier weights",
            "Each task's loss should fall from visit to visit. The distances are what the memory terms hold down; they "
            "have a floor, since they compare a training view with a plain one.",
        ),
    },
}
