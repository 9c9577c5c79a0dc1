"""The GPU kernels: one file a pass, and beside them what passes share. Only these files are in Triton's language."""
