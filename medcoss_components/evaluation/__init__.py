"""How good a fine-tuned model is: metrics per case and per data set, confidence intervals, the results of a run."""
