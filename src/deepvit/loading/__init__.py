"""MODEL strings: a network with its preprocessing from a name, a file or a folder, and the report on it."""

from deepvit.loading.diagnosing import diagnose, show_conversion, show_diagnosis
from deepvit.loading.subjects import Subject, load_subject

__all__ = ["Subject", "diagnose", "load_subject", "show_conversion", "show_diagnosis"]
