"""Masks and polygons in the coordinates of georeferenced images, with rasterio (GDAL)."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wildcat.errors import DataError, import_extra
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
    """Refuse images without a place on Earth where polygons are asked for.

    Raises:
        DataError: names the first one.
        MissingExtra: rasterio is not installed.
    """
    _import_rasterio()
    for image in images:
        where = georeference(image)
        if where is None or not _maps_to_wgs84(where.crs):
            reason = (
                "has no georeference (coordinate system and affine transform)"
                if where is None
                else "has a coordinate system that does not map to WGS 84, such as a local grid"
            )
            raise DataError(
                f"{image} {reason}, so its polygons have no place.",
                "Leave polygons out of --save; wildcat export --format coco-polygons writes them in pixels.",
            )


def _maps_to_wgs84(crs: Any) -> bool:
    from rasterio.warp import transform  # noqa: PLC0415  # optional

    try:
        transform(crs, WGS84, [math.nan], [math.nan])  # any number may lie outside of the projection
    except Exception:  # rasterio has no public class for the errors of GDAL
        return False
    return True


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

    The antimeridian cuts a region into a MultiPolygon. A region that reaches off the Earth, in the image of a
    geostationary satellite, has the geometry null, GeoJSON's mark for features without a place.

    Args:
        properties: label -> the properties of its polygons.
    """
    _import_rasterio()
    from rasterio.features import shapes  # noqa: PLC0415  # optional

    found = shapes(mask.astype(np.int32), mask=mask > 0, connectivity=4, transform=where.transform)
    features = [
        {"type": "Feature", "properties": dict(properties[int(label)]), "geometry": _to_wgs84(shape, where.crs)}
        for shape, label in found
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False)
    write_bytes(path, text.encode(errors="backslashreplace") + b"\n")


def _to_wgs84(polygon: Mapping[str, Any], crs: Any) -> dict[str, Any] | None:
    """A polygon as a geometry of RFC 7946; None if a point of it is not on Earth."""
    from rasterio.warp import transform_geom  # noqa: PLC0415  # optional

    try:
        shape = transform_geom(crs, WGS84, polygon, precision=_DECIMALS)
    except Exception:  # as above
        return None
    parts = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
    turned = [[_turned(ring, counterclockwise=n == 0) for n, ring in enumerate(rings)] for rings in parts]
    return {"type": shape["type"], "coordinates": turned if shape["type"] == "MultiPolygon" else turned[0]}


def _turned(ring: Sequence[Sequence[float]], counterclockwise: bool) -> list[Sequence[float]]:
    """A closed ring in the order of RFC 7946: outer rings counterclockwise, holes clockwise."""
    x, y = np.asarray(ring).T
    is_counterclockwise = float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) > 0
    return list(ring) if is_counterclockwise == counterclockwise else list(ring)[::-1]


def _import_rasterio() -> Any:
    return import_extra("rasterio", "rasterio", "geo")
