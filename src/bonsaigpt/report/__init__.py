"""Pages that tell what runs did: one file each, no outside resource, readable without a network."""

from bonsaigpt.report.compare import comparison, write_comparison
from bonsaigpt.report.page import write_report

__all__ = ["comparison", "write_comparison", "write_report"]
