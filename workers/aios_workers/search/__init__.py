"""Embeddings and search, for memory and storage."""
