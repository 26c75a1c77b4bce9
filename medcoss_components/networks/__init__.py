"""Embeddings, encoder and the pre-training model."""
