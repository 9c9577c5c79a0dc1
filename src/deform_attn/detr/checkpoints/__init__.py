"""Checkpoints: detectors in files, ours and those of other projects."""
