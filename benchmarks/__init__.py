"""The comparison with every rival: `python -m benchmarks.run`; docs/benchmarks.md tells how and shows the results."""
