"""Packages of others: which are installed, and in which versions."""

import importlib.util
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

# Distributions whose versions a result records.
RECORDED = (
    "deform-attn",
    "torch",
    "torchvision",
    "transformers",
    "ultralytics",
    "rfdetr",
    "onnxruntime",
    "onnx",
    "openvino",
    "torch-ms-deform-attn",
    "deformops",
    "msda-triton",
)


def not_installed(packages: Sequence[str]) -> str | None:
    """Return that some of `packages`, the modules that something imports, are not installed, or None."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def versions() -> dict[str, str]:
    """Return the versions of those of the recorded packages that are installed."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
