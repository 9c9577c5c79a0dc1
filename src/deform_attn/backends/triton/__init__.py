"""The backend `triton`: GPU kernels, compiled by Triton on the machine that runs them."""
