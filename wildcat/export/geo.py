"""Masks and polygons in the coordinates of georeferenced images, with rasterio (GDAL)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wildcat.errors import DataError, MissingExtra
from wildcat.files import write_bytes

WGS84 = "EPSG:4326"  # the only coordinates of GeoJSON, longitude before latitude (RFC 7946)
_DECIMALS = 7  # of degrees: a centimetre
_GEO_KEYS = 34735  # TIFF tag of the coordinate system (GeoTIFF 1.1)


class Georeference(NamedTuple):
    """The coordinate system of an image, and the affine transform from (x, y) in pixels to it; both of rasterio."""

    crs: Any
    transform: Any


def georeference(path: object) -> Georeference | None:
    """Where a TIFF file lies on Earth; None for other files, and those without a coordinate system and a transform.

    Raises:
        MissingExtra: rasterio is not installed.
    """
    if not isinstance(path, Path) or path.suffix.lower() not in (".tif", ".tiff"):
        return None
    rasterio = _import_rasterio()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            with rasterio.open(path, driver="GTiff") as dataset:
                known = dataset.crs is not None and not dataset.transform.is_identity
                return Georeference(dataset.crs, dataset.transform) if known else None
        except rasterio.errors.RasterioError:  # an image that cannot be read: predicting it gives the error
            return None


def check_georeferenced(images: Iterable[object]) -> None:
    """Refuse images without a georeference where polygons are asked for.

    Raises:
        DataError: names the first one.
        MissingExtra: rasterio is not installed.
    """
    _import_rasterio()
    for image in images:
        if georeference(image) is None:
            raise DataError(
                f"{image} has no georeference (coordinate system and affine transform), so its polygons have no place.",
                "Leave polygons out of --save; wildcat export --format coco-polygons writes them in pixels.",
            )


def has_geo_keys(path: object) -> bool:
    """Whether a TIFF file names a coordinate system; needs no rasterio."""
    if not isinstance(path, Path) or path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with Image.open(path) as image:
            return _GEO_KEYS in getattr(image, "tag_v2", {})
    except Exception:  # predicting the image gives the error
        return False


def write_geo_mask(
    path: Path, mask: NDArray[Any], where: Georeference, classes: Sequence[str], palette: NDArray[np.uint8]
) -> None:
    """Write an (H, W) mask of labels 0 to 255 as a GeoTIFF with a colour table; atomic.

    The tag `classes` lists the names of the labels from 1 on, as JSON.
    """
    rasterio = _import_rasterio()
    profile = {"height": mask.shape[0], "width": mask.shape[1], "count": 1, "dtype": "uint8", **where._asdict()}
    with rasterio.MemoryFile() as file:
        with file.open(driver="GTiff", compress="deflate", tiled=True, **profile) as dataset:
            dataset.write(mask.astype(np.uint8), 1)
            dataset.write_colormap(1, {i: (*map(int, colour), 255) for i, colour in enumerate(palette)})
            dataset.update_tags(classes=json.dumps(list(classes)))
        file.seek(0)
        write_bytes(path, file.read())


def write_polygons(
    path: Path, mask: NDArray[Any], where: Georeference, properties: Mapping[int, Mapping[str, Any]]
) -> None:
    """Write the regions of an (H, W) mask, without 0, as GeoJSON polygons in WGS 84; atomic.

    Args:
        properties: label -> the properties of its polygons.
    """
    _import_rasterio()
    from rasterio.features import shapes  # noqa: PLC0415  # optional
    from rasterio.warp import transform_geom  # noqa: PLC0415  # optional

    found = shapes(mask.astype(np.int32), mask=mask > 0, connectivity=4, transform=where.transform)
    features = []
    for shape, label in found:
        rings = transform_geom(where.crs, WGS84, shape, precision=_DECIMALS)["coordinates"]
        rings = [_turned(ring, counterclockwise=number == 0) for number, ring in enumerate(rings)]
        geometry = {"type": "Polygon", "coordinates": rings}
        features.append({"type": "Feature", "properties": dict(properties[int(label)]), "geometry": geometry})
    text = json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False)
    write_bytes(path, text.encode(errors="backslashreplace") + b"\n")


def _turned(ring: Sequence[Sequence[float]], counterclockwise: bool) -> list[Sequence[float]]:
    """A closed ring in the order of RFC 7946: outer rings counterclockwise, holes clockwise."""
    x, y = np.asarray(ring).T
    is_counterclockwise = float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) > 0
    return list(ring) if is_counterclockwise == counterclockwise else list(ring)[::-1]


def _import_rasterio() -> Any:
    try:
        import rasterio  # noqa: PLC0415  # optional
    except ImportError as error:
        raise MissingExtra("rasterio", "geo") from error
    return rasterio
