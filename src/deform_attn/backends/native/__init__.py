"""The backend `native`: the compiled CPU kernels, how they are found, judged, called, and called again."""
