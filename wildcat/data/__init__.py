"""Data sets: images with image-level labels, and boxes and masks if the layout has them.

`open_dataset` reads any layout into a `DataSet` (`dataset.py`).
"""

from wildcat.data.dataset import DataSet, Sample
from wildcat.data.download import fetch_dataset, is_fetched
from wildcat.data.image_ref import list_pages, load_image
from wildcat.data.images import read_image
from wildcat.data.labels import parse_names
from wildcat.data.listing import list_images
from wildcat.data.readers.synthetic import write_shapes
from wildcat.data.readers.webdataset import write_webdataset
from wildcat.data.registry import FORMATS, find_format, list_datasets, open_dataset
from wildcat.data.sources import find_source
from wildcat.data.video import video_frames

__all__ = [
    "FORMATS",
    "DataSet",
    "Sample",
    "fetch_dataset",
    "find_format",
    "find_source",
    "is_fetched",
    "list_datasets",
    "list_images",
    "list_pages",
    "load_image",
    "open_dataset",
    "parse_names",
    "read_image",
    "video_frames",
    "write_shapes",
    "write_webdataset",
]
