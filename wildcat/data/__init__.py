"""Data sets: images with image-level labels, and boxes and masks if the layout has them.

`open_dataset` reads any layout into a `DataSet` (`dataset.py`).
"""

from wildcat.data.cache import cache_folder
from wildcat.data.dataset import (
    ABSENT,
    IGNORED,
    PRESENT,
    DataSet,
    Sample,
    Task,
    label_matrix,
    stratified_indices,
)
from wildcat.data.download import fetch_dataset, is_fetched
from wildcat.data.image_ref import ImageRef, load_image
from wildcat.data.images import list_images, read_image, read_mask, to_rgb
from wildcat.data.readers.synthetic import write_shapes
from wildcat.data.readers.webdataset import write_webdataset
from wildcat.data.registry import FORMATS, DataSetInfo, Format, list_datasets, open_dataset
from wildcat.data.sources import Source, find_source

__all__ = [
    "ABSENT",
    "FORMATS",
    "IGNORED",
    "PRESENT",
    "DataSet",
    "DataSetInfo",
    "Format",
    "ImageRef",
    "Sample",
    "Source",
    "Task",
    "cache_folder",
    "fetch_dataset",
    "find_source",
    "is_fetched",
    "label_matrix",
    "list_datasets",
    "list_images",
    "load_image",
    "open_dataset",
    "read_image",
    "read_mask",
    "stratified_indices",
    "to_rgb",
    "write_shapes",
    "write_webdataset",
]
