"""Solar cells in electroluminescence light (elpv-dataset): 2,624 grey images labelled with a defect probability.

Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery",
2018; Deitsch et al., "Automatic classification of defective photovoltaic module cells", 2019. CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from wildcat.data.dataset import DataSet, Sample, grouped_splits, one_label, stratified_indices
from wildcat.errors import ConfigError, DataError, MissingExtra, did_you_mean

SOLAR_CLASSES = ("functional", "defective")
CELL_TYPES = ("mono", "poly")
TEST_FRACTION = 0.25


def find_solar() -> Path:
    """The data folder of the installed package `elpv-dataset`; its code is not run.

    Raises:
        MissingExtra: the package is not installed.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("elpv-dataset", "demo")
    return Path(spec.submodule_search_locations[0]) / "data"


def read_solar(root: Path | None = None, *, threshold: float = 0.5, cells: str = "all") -> DataSet:
    """The solar cells as a multi-class data set of functional and defective ones.

    Experts gave each cell a probability of being defective: 0, 1/3, 2/3 or 1; it is defective from `threshold` in
    (0, 1] on. `cells` selects "mono"- or "poly"-crystalline cells. Splits `train` and `test` are a fixed 75/25,
    stratified by probability and type; an image's split depends on neither option.

    Raises:
        MissingExtra: `root` is None and the package is not installed.
        ConfigError: `threshold` or `cells` is out of range.
        DataError: `labels.csv` is damaged.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(
            f"threshold={threshold}: give the defect probability from which a cell is defective, in (0, 1].",
            "Cells are labelled 0, 1/3, 2/3 or 1; the default is 0.5.",
        )
    if cells not in ("all", *CELL_TYPES):
        raise ConfigError(f"cells={cells!r}: give all, mono or poly.", did_you_mean(cells, ("all", *CELL_TYPES)))
    root = find_solar() if root is None else root
    rows = _read_rows(root / "labels.csv")
    levels = sorted({row[1:] for row in rows})
    tested = stratified_indices([levels.index(row[1:]) for row in rows], TEST_FRACTION, seed=0)
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    for index, (name, probability, cell_type) in enumerate(rows):
        if cells in ("all", cell_type):
            sample = Sample(name, root / name, one_label(int(probability >= threshold), 2))
            splits["test" if index in tested else "train"].append(sample)
    return DataSet("solar", "solar", root, SOLAR_CLASSES, "multiclass", grouped_splits(splits))


def _read_rows(path: Path) -> list[tuple[str, float, str]]:
    """(image, defect probability, cell type) of the rows of `labels.csv`, whose cells are separated by spaces."""
    if not path.is_file():
        raise DataError(f"{path} does not exist.", "Install elpv-dataset again.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            name, probability, cell_type = line.split()
            rows.append((name, float(probability), CELL_TYPES[CELL_TYPES.index(cell_type)]))
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: {line!r} is not an image, a probability and mono or poly.",
                "Install elpv-dataset again.",
            ) from error
    return rows
