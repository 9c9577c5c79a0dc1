"""The backends: one file each, their common form in base.py, their order in registry.py."""
