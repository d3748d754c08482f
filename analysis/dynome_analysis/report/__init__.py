"""One self-contained HTML file that tells what a recorded network did while it learned."""

from dynome_analysis.report.page import write_report

__all__ = ["write_report"]
