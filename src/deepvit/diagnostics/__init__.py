"""Diagnostics: capture attention of any model, measure collapse, say what it means, and write the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepvit.diagnostics.capturing import attention_blocks, capture
from deepvit.diagnostics.diagnosis import Report, diagnose
from deepvit.diagnostics.probe import CollapseProbe
from deepvit.diagnostics.report import compare_reports

if TYPE_CHECKING:
    from deepvit.diagnostics.monitor import CollapseMonitor

__all__ = [
    "CollapseMonitor",
    "CollapseProbe",
    "Report",
    "attention_blocks",
    "capture",
    "compare_reports",
    "diagnose",
]


def __getattr__(name: str) -> Any:
    if name == "CollapseMonitor":  # Lightning is imported only when its callback is asked for
        from deepvit.diagnostics.monitor import CollapseMonitor

        return CollapseMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
