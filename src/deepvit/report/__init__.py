"""Reports: measurements in, one self-contained HTML page, ``collapse.json`` and figures out."""

from __future__ import annotations

from deepvit.report.compare import compare_html, compare_reports
from deepvit.report.diagnosis import Report, diagnose
from deepvit.report.store import load, save
from deepvit.report.write import report_html, write_report

__all__ = [
    "Report",
    "compare_html",
    "compare_reports",
    "diagnose",
    "load",
    "report_html",
    "save",
    "write_report",
]
