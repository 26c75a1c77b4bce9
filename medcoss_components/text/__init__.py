"""Vocabularies: byte-pair training and WordPiece loading."""
