"""Deformable attention for everyone."""
