"""Pages that tell what a run did: one file, no outside resource, readable without a network."""

from bonsaigpt.report.page import comparison, write_comparison, write_report

__all__ = ["comparison", "write_comparison", "write_report"]
