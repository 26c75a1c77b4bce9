"""Masked image and masked language modelling."""
