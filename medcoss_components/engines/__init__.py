"""Pre-trainer, stage, chain and their handlers."""
