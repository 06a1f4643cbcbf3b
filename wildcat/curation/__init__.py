"""Decide about labels: what is wrong with those that exist, and which images to label next.

`audit_data` (`audit.py`) looks for suspect labels, copies across splits, unreadable files and rare classes, and
`write_audit` (`page.py`) writes them as tables and a report. `rank_images` (`rank.py`) chooses images to label.
"""

from wildcat.curation.audit import Audit, audit_data
from wildcat.curation.page import write_audit
from wildcat.curation.rank import rank_images

__all__ = ["Audit", "audit_data", "rank_images", "write_audit"]
