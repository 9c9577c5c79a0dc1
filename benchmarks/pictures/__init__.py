"""Pictures of the gallery, each drawn by one module, with one command: `python -m benchmarks.pictures NAME`."""
