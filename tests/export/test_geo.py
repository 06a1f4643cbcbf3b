"""Georeferenced images: bands in, masks and polygons in their coordinates out, against rasterio's own arithmetic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.test_predictor import block, colour_finder
from wildcat.cli import images as cli_images
from wildcat.cli import main
from wildcat.cli.options import DataCommand
from wildcat.data.image_ref import list_pages
from wildcat.data.images import decode_bytes, decode_file, header_error, read_image
from wildcat.errors import DataError, ImageError, MissingExtra
from wildcat.export.geo import check_georeferenced, georeference, has_geo_keys
from wildcat.export.predictions import PredictionWriter
from wildcat.predictor import Predictor

rasterio = pytest.importorskip("rasterio")

UTM = "EPSG:32632"
PLACE = rasterio.transform.from_origin(500_000, 5_400_000, 10, 10)  # pixels of 10 m; 500 km east: longitude 9
Values = NDArray[Any]


def write_tif(path: Path, values: Values, **options: Any) -> Path:
    """A TIFF of (H, W) or (H, W, bands); georeferenced unless `crs` is None."""
    bands = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    place = {"crs": UTM, "transform": PLACE} | options
    place = {name: value for name, value in place.items() if value is not None}
    size = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", **size, **place) as dataset:
        dataset.write(bands)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Red in one cell of 40 x 20 pixels whose upper left corner is (120, 40)."""
    return write_tif(tmp_path / "scene.tif", block(2, 3), photometric="RGB")


# --- reading ----------------------------------------------------------------------------------------------------------

COUNTS = np.random.default_rng(0).integers(0, 3001, (12, 10, 4)).astype(np.uint16)


def scaled(values: Values, low: float, high: float) -> list[Any]:
    return ((values.astype(float) - low) / (high - low) * 255).clip(0, 255).round().astype(int).tolist()  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_bands_with_an_intensity_range(tmp_path: Path) -> None:
    colours = {
        "three": (write_tif(tmp_path / "three.tif", COUNTS[..., :3]), COUNTS[..., :3]),
        "marked": (write_tif(tmp_path / "marked.tif", COUNTS[..., :3], photometric="RGB"), COUNTS[..., :3]),
        "four": (write_tif(tmp_path / "four.tif", COUNTS, photometric="RGB"), COUNTS[..., :3]),
    }
    path = write_tif(tmp_path / "bgr.tif", COUNTS)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red", "undefined")]
    colours["bgr"] = (path, COUNTS[..., 2::-1])
    for path, values in colours.values():
        for intensity in ((0.0, 3000.0), (500.0, 2000.0)):
            shown = np.asarray(decode_file(path, intensity=intensity)[0])
            assert shown.tolist() == scaled(values, *intensity), path
        assert np.abs(np.asarray(read_image(path)).astype(int) - scaled(values, 0, 65535)).max() <= 1
    shown = np.asarray(decode_bytes(path.read_bytes(), "in memory", intensity=(0, 3000))[0])
    assert shown.tolist() == scaled(COUNTS[..., 2::-1], 0, 3000)


def test_floats_and_pixels_without_data(tmp_path: Path) -> None:
    values = np.array([[[0.0, 0.5, 1.0], [np.nan, -9999.0, 2.0]]], np.float32)
    path = write_tif(tmp_path / "a.tif", values, nodata=-9999)
    assert np.asarray(decode_file(path, intensity=(0, 1))[0]).tolist() == [[[0, 128, 255], [0, 0, 255]]]
    with pytest.raises(ImageError, match=r"a\.tif holds float32 values, which have no defined white") as caught:
        read_image(path)
    assert "--intensity-range LOW,HIGH" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "nodata", "intensity"),
    [
        (np.array([[[65535], [3000]]], np.uint16), 65535, (0, 3000)),
        (np.array([[[3.4e38], [3000]]], np.float32), 3.4e38, (0, 3000)),
        (np.array([[[255] * 3, [254, 254, 254]]], np.uint8), 255, None),
        (np.array([[[65535] * 3, [65200] * 3]], np.uint16), 65535, None),
    ],
)
def test_pixels_without_data_in_files_that_pillow_reads(
    tmp_path: Path, values: Any, nodata: float, intensity: tuple[float, float] | None
) -> None:
    path = write_tif(tmp_path / "a.tif", values, nodata=nodata)
    empty, full = np.asarray(decode_file(path, intensity=intensity)[0])[0].tolist()
    assert empty == [0, 0, 0]
    assert min(full) >= 254


def test_bands_that_are_no_colours(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", COUNTS)
    error = header_error(path)
    assert error is not None
    assert "has 4 bands of uint16, of which none are marked as colours" in error.message
    assert "gdal_translate -b 4 -b 3 -b 2" in error.hint


def test_without_rasterio(tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tif(tmp_path / "a.tif", COUNTS[..., :3])
    (tmp_path / "text.tif").write_bytes(b"II*\0 is all that this file has in common with a TIFF")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.setitem(sys.modules, "wildcat.data.bands", None)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "TIFF-BANDS"])
    for name in ("a.tif", "text.tif"):
        with pytest.raises(
            ImageError, match=rf"{name} is a TIFF of several bands, or damaged.*: rasterio is not installed"
        ) as caught:
            read_image(tmp_path / name)
        assert isinstance(caught.value, MissingExtra)
        assert caught.value.hint == "Type: pip install 'wildcat-vision[geo]'"
    assert read_image(scene).size == (320, 160), "Pillow reads it"
    with pytest.raises(MissingExtra, match="rasterio is needed here"):
        check_georeferenced([scene])
    assert has_geo_keys(scene)
    write(colour_finder(), scene, tmp_path / "out", ("masks",))
    assert (tmp_path / "out" / "masks" / "scene.png").is_file()


def test_a_damaged_tiff(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", COUNTS, photometric="RGB", compress="deflate")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match=r"a\.tif is "):
        decode_file(path, intensity=(0, 3000))
    path.write_bytes(b"II*\0" + bytes(30))
    with pytest.raises(ImageError, match=r"a\.tif is not an image"):
        read_image(path)


def test_overviews_are_no_pages(scene: Path) -> None:
    with rasterio.open(scene, "r+") as dataset:
        dataset.build_overviews([2, 4])
    assert len(list_pages(scene)) == 1


# --- writing ----------------------------------------------------------------------------------------------------------


def write(predictor: Predictor, path: Path, out: Path, save: tuple[str, ...]) -> list[dict[str, Any]]:
    images = cli_images.find_images([str(path)], None, 0, DataCommand())
    with PredictionWriter(out, save) as writer:
        for prediction, name in cli_images.predict_each(predictor, images, "predicting", False, 4):
            writer.add(prediction, name)
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tile", [None, 128])
def test_masks_and_polygons_lie_where_the_image_lies(scene: Path, tmp_path: Path, tile: int | None) -> None:
    predictor = colour_finder()
    predictor.tile = tile
    (row,) = write(predictor, scene, tmp_path / "out", ("masks", "polygons"))
    assert row["files"] == {"masks": "masks/scene.tif", "polygons": "polygons/scene.geojson"}
    expected = predictor.predict(scene).mask()
    with rasterio.open(tmp_path / "out" / "masks" / "scene.tif") as dataset:
        assert (dataset.crs.to_string(), dataset.transform) == (UTM, PLACE)
        assert np.array_equal(dataset.read(1), expected)
        assert json.loads(dataset.tags()["classes"]) == ["red", "green", "blue"]
        assert dataset.colormap(1)[0][:3] == (0, 0, 0)
    collection = json.loads((tmp_path / "out" / "polygons" / "scene.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    assert {feature["properties"]["class"] for feature in collection["features"]} == {"red"}
    assert collection["features"][0]["properties"]["image"] == str(scene)
    shapes = [feature["geometry"] for feature in collection["features"]]
    longitudes, latitudes = np.asarray(shapes[0]["coordinates"][0]).T
    assert ((longitudes > 8.999) & (longitudes < 9.05)).all() and ((latitudes > 48.7) & (latitudes < 48.76)).all()
    back = [rasterio.warp.transform_geom("EPSG:4326", UTM, shape) for shape in shapes]
    burnt = rasterio.features.rasterize(back, expected.shape, transform=PLACE)
    assert np.array_equal(burnt, expected > 0)


def test_rings_turn_as_rfc_7946_says(tmp_path: Path) -> None:
    from wildcat.export.geo import Georeference, write_polygons

    mask = np.zeros((9, 9), np.int64)
    mask[1:8, 1:8], mask[3:6, 3:6], mask[4, 4] = 2, 0, 1
    where = Georeference(rasterio.CRS.from_string(UTM), PLACE)
    write_polygons(tmp_path / "a.geojson", mask, where, {1: {"class": "a"}, 2: {"class": "b"}})
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    rings = {feature["properties"]["class"]: len(feature["geometry"]["coordinates"]) for feature in features}
    assert rings == {"a": 1, "b": 2}
    for feature in features:
        for number, ring in enumerate(feature["geometry"]["coordinates"]):
            assert ring[0] == ring[-1]
            (x, y) = np.asarray(ring).T
            area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
            assert (area > 0) == (number == 0), "outer rings counterclockwise, holes clockwise"


def geometries(tmp_path: Path, crs: str, transform: Any) -> list[Any]:
    """Of two regions, of columns 2 to 17 and of column 20, in a mask of 6 x 22 pixels."""
    from wildcat.export.geo import Georeference, write_polygons

    mask = np.zeros((6, 22), np.int64)
    mask[1:5, 2:18], mask[2:4, 4:7], mask[1:5, 20] = 1, 0, 2
    where = Georeference(rasterio.CRS.from_string(crs), transform)
    write_polygons(tmp_path / "a.geojson", mask, where, {1: {"class": "a"}, 2: {"class": "b"}})
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    return [f["geometry"] for f in sorted(features, key=lambda f: str(f["properties"]["class"]))]


def test_the_antimeridian_cuts_a_region_in_two(tmp_path: Path) -> None:
    across, beside = geometries(tmp_path, "EPSG:32660", rasterio.transform.from_origin(620_000, 7_000_000, 4000, 1000))
    assert (across["type"], beside["type"]) == ("MultiPolygon", "Polygon")
    areas = [0.0, 0.0]
    for rings in across["coordinates"]:
        for number, ring in enumerate(rings):
            x, y = np.asarray(ring).T
            area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
            assert (area > 0) == (number == 0) and (np.sign(x) == np.sign(x[0])).all()
            areas[int(x[0] < 0)] += area
    assert min(areas) > 0.005, "square degrees on both sides"
    assert len(beside["coordinates"]) == 1


def test_a_region_off_the_earth_has_no_geometry(tmp_path: Path) -> None:
    seen = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=WGS84"
    beyond, inside = geometries(tmp_path, seen, rasterio.transform.from_origin(-10_000_000, 0, 500_000, 100_000))
    assert beyond is None and inside["type"] == "Polygon"


@pytest.mark.parametrize("system", ['LOCAL_CS["site grid", UNIT["metre", 1]]', "IAU_2015:49900"])
def test_a_coordinate_system_without_a_place_on_earth_is_refused(tmp_path: Path, scene: Path, system: str) -> None:
    path = write_tif(tmp_path / "a.tif", block(1, 1), photometric="RGB", crs=rasterio.CRS.from_user_input(system))
    with pytest.raises(DataError, match=r"a\.tif has a coordinate system that does not map to WGS 84"):
        check_georeferenced([scene, path])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_images_without_a_georeference(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = write_tif(tmp_path / "plain.tif", block(1, 1), photometric="RGB", crs=None, transform=None)
    no_system = write_tif(tmp_path / "no_system.tif", block(1, 1), photometric="RGB", crs=None)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    for path in (plain, no_system, tmp_path / "a.png"):
        assert georeference(path) is None
        with pytest.raises(DataError, match=rf"{path.name} has no georeference"):
            check_georeferenced([scene, path])
    assert not has_geo_keys(plain)
    out = tmp_path / "out"
    command = ["predict", "imagenet-lite0", str(plain), "--save", "polygons", "--out", str(out), "--device", "cpu"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f"{plain} has no georeference (coordinate system and affine transform)" in said
    assert "--format coco-polygons" in said
    assert not out.exists()
    (row,) = write(colour_finder(), plain, tmp_path / "masks", ("masks",))
    assert row["files"]["masks"] == "masks/plain.png"


def test_the_command(scene: Path, tmp_path: Path) -> None:
    command = ["predict", "imagenet-lite0", str(scene), "--save", "polygons", "--device", "cpu", "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    collection = json.loads((tmp_path / "out" / row["files"]["polygons"]).read_text())
    assert {feature["properties"]["class"] for feature in collection["features"]} <= set(row["scores"])
