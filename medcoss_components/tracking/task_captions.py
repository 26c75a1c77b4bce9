"""What the numbers and pictures of an evaluation report show and how to read them."""

from __future__ import annotations

from medcoss_components.tracking.report_captions import Caption

NAMES = {
    "map": ("mAP", "average precision, mean over overlaps 0.5 to 0.95"),
    "map50": ("AP50", "average precision, overlap 0.5"),
    "map75": ("AP75", "average precision, overlap 0.75"),
    "ar1": ("AR1", "share found by the surest box of a case"),
    "ar10": ("AR10", "share found by the 10 surest boxes"),
    "ar100": ("AR100", "share found by the 100 surest boxes"),
    "froc": ("FROC", "mean sensitivity at 1/8 to 8 false boxes a case"),
    "accuracy": ("Accuracy", "share of all cases called right"),
    "balanced_accuracy": ("Balanced accuracy", "mean sensitivity over the classes"),
    "auc": ("AUC", "area under the ROC curve; 0.5 is guessing"),
    "f1": ("F1", "mean over the classes"),
    "sensitivity": ("Sensitivity", "share of the class that is found"),
    "specificity": ("Specificity", "share of the others that is left out"),
    "ece": ("Calibration error", "0 is best; expected, 15 bins"),
    "dice": ("Dice", "overlap; 1 is best"),
    "iou": ("IoU", "intersection over union; 1 is best"),
    "miou": ("Mean IoU", "the same, the background counts as one region more"),
    "hd95": ("HD95", "distance of the outlines; 0 is best"),
    "surface_dice": ("Surface Dice", "outline within the tolerance; 1 is best"),
    "false_positives": ("False boxes", "for each case; 0 is best"),
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

DETECTION = (
    "Interval: 95 % of the resamples lie inside (bootstrap; whole patients are drawn). A found box is a hit when it "
    "has the category of a true box and their intersection over union reaches the overlap; each true box is found "
    "once, by the surest such box. mAP is the area under the precision-recall curve (COCO, 101 recalls), mean over "
    "the overlaps 0.5, 0.55 to 0.95; AR the share of true boxes that is found, mean over the same overlaps; boxes of "
    "every score count in them and in FROC. Sensitivity and false boxes are those at the score threshold, overlap "
    "0.5. Means are over the categories that have true boxes; false boxes are summed over all. Found boxes in cases "
    "without true boxes are false ones."
)

PRECISION = Caption(
    "Precision and recall",
    "Precision against recall of the found boxes of each category at overlap 0.5",
    "Each curve walks from the surest found box to the least sure one: which share of the true boxes is found so far "
    "(recall), and which share of the found boxes is right (precision). The nearer to the upper right corner, the "
    "better; the area under the curve is AP50. The mark is the score threshold of tables and pictures.",
)

FROC = Caption(
    "False boxes against sensitivity",
    "Sensitivity against false boxes for each case, logarithmic, of each category at overlap 0.5",
    "How much of what is there is found against how many false boxes a reader would have to dismiss in each case. The "
    "nearer to the upper left corner, the better. The dotted lines are the rates that FROC averages over. The mark is "
    "the score threshold of tables and pictures.",
)

WORST_BOXES = Caption(
    "Lowest F1",
    "Image of a case with true and found boxes",
    "Each shows the image alone and with its boxes. Blue is what is there: dashed where it was missed. Orange is what "
    "was found, with category and score, from the score threshold on.",
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
