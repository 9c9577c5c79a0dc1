"""Evaluation: what detections are worth."""
