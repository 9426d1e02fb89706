"""Reports: measurements in, one self-contained HTML page, ``collapse.json`` and figures out."""

from __future__ import annotations

from deepvit.diagnostics.report.compare import compare_html, compare_reports
from deepvit.diagnostics.report.store import load, save
from deepvit.diagnostics.report.write import report_html, write_report

__all__ = ["compare_html", "compare_reports", "load", "report_html", "save", "write_report"]
