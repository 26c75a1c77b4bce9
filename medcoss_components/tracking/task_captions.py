"""What the numbers and pictures of an evaluation report show and how to read them."""

from __future__ import annotations

from medcoss_components.tracking.report_captions import Caption

NAMES = {
    "accuracy": ("Accuracy", "share of all cases called right"),
    "balanced_accuracy": ("Balanced accuracy", "mean sensitivity over the classes"),
    "auc": ("AUC", "area under the ROC curve; 0.5 is guessing"),
    "f1": ("F1", "mean over the classes"),
    "sensitivity": ("Sensitivity", "share of the class that is found"),
    "specificity": ("Specificity", "share of the others that is left out"),
    "ece": ("Calibration error", "0 is best; expected, 15 bins"),
    "dice": ("Dice", "overlap; 1 is best"),
    "hd95": ("HD95", "distance of the outlines; 0 is best"),
    "surface_dice": ("Surface Dice", "outline within the tolerance; 1 is best"),
}
"""Metric -> name and what it means, in the order of the report."""

CLASSIFICATION = (
    "Interval: 95 % of the resamples lie inside (bootstrap; whole patients are drawn). AUC and F1 are means "
    "over the classes that have cases; with two classes AUC, sensitivity and specificity are those of the second "
    "class. Resampling makes the calibration error larger, so its interval lies high. Undefined numbers stand as –."
)

SEGMENTATION = (
    "Interval: 95 % of the resamples lie inside (bootstrap; whole patients are drawn). Dice is the mean over "
    "the cases of the mean over the regions. HD95 is the 95th percentile of the distances between the outlines. A "
    "region that both leave empty counts as right (Dice 1, distance 0). A region that only one of them holds has Dice "
    "0 and no distance: such pairs are counted as undefined and are not in the mean distance, so read the two together."
)

ROC = Caption(
    "ROC curves",
    "ROC curves with the area under each curve",
    "Each curve walks through all thresholds on the probability of a class: how much of the class is found against how "
    "many other cases are called so by mistake. The nearer to the upper left corner, the better; the dotted diagonal "
    "is guessing. Few cases make coarse steps.",
)

CONFUSION = Caption(
    "Confusion matrix",
    "Matrix of true classes against predicted classes with shares and numbers of cases",
    "One row a true class, with its number of cases in brackets; each cell says which share of the row was called the "
    "class of the column, and how many cases that are. The diagonal is right; dark cells off it are the usual mix-ups.",
)

CALIBRATION = Caption(
    "Calibration",
    "Share of right predictions against the probability that the model gave them",
    "Cases are sorted by the probability that the model gave to its own prediction. A bar is the share of them that is "
    "right, the orange mark the probability that was promised. Bars below the marks: the model is too sure of itself. "
    "Below: how many cases each bar stands for.",
)

SCORES = Caption(
    "Scores of the cases",
    "Dice and Hausdorff distance of every case as dots with median and quartiles",
    "A dot is a case (of many cases an even selection), the black bar the median, the tinted box the middle half. Look "
    "for dots far from the others: they are the cases to open. A region with undefined distances says how many.",
)

WORST = Caption(
    "Lowest Dice",
    "Slice of a case with the outlines of reference and prediction",
    "Each shows the slice with the most wrong pixels, once alone and once for each region. "
    "Blue is the reference, orange the prediction; blue tint was missed, orange "
    "tint wrongly added.",
)
