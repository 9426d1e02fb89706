"""Deployment: a network as an ONNX file or a torch.export program, with the file that says how it is used."""

from deepvit.exporting.formats import FORMATS, Format, register
from deepvit.exporting.run import Exported, export

__all__ = ["FORMATS", "Exported", "Format", "export", "register"]
