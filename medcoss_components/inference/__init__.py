"""Predictions for files: finding cases, running a fine-tuned network on them, writing what it says."""
