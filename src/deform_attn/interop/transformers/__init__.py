"""Hugging Face transformers: the families whose deformable attention runs here."""
