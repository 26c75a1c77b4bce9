"""Modalities, manifests, readers, prepared stores and the sampler."""
