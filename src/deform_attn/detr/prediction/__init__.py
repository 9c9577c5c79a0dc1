"""Prediction: what a detector finds in pictures, where it looks for that, and its export."""
