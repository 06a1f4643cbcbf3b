"""A report of a model: one HTML file with metrics, curves and example images that opens without a network.

`report_split` evaluates a model on labelled data; for predictions without ground truth, fill a `Gallery` and pass it to
`write_report`. The file contains everything: reduced images, and maps as the network's few cells, which its script
draws when they scroll into view.
"""

from wildcat.report.gallery import Gallery
from wildcat.report.page import ModelInfo, check_target, model_info, report_split, write_report

__all__ = ["Gallery", "ModelInfo", "check_target", "model_info", "report_split", "write_report"]
