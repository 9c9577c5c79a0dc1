"""Export: models with deformable attention as files of ONNX, in the form that a runtime takes."""

from deform_attn.export.onnx import Exported, to_onnx

__all__ = ["Exported", "to_onnx"]
