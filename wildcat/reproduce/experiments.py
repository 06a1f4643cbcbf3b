"""The experiments of the paper: what each table and figure varies, and what the paper reports.

Declarations only; `wildcat.reproduce.runner` runs them. The numbers are from Durand et al., CVPR 2017, with ResNet-101:
several scales combined in tables 2 to 4, 8 and 9, one scale at 448 px in tables 5 to 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from wildcat.config import Localize, TrainConfig
from wildcat.errors import ConfigError, did_you_mean
from wildcat.settings import method_settings

Metric = Literal["map", "point_ap", "accuracy", "miou"]

METRIC_NAMES: dict[str, str] = {
    "map": "mAP",
    "point_ap": "point AP",
    "pointing_game": "pointing game",
    "accuracy": "accuracy",
    "miou": "mean IoU",
}

MEASURED = (*METRIC_NAMES, "class_mean_accuracy")  # stored for each cell if the data has the ground truth


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: its label.
        settings: fields of `TrainConfig` that define it; None for a line that only the paper reports.
        paper: data set -> the paper's number, in per cent.
        x: its position on the x axis of a figure.
        line: the line of the figure it belongs to.
        method: its name in `wildcat.methods`; "" where it is none of them.
        crf: whether its masks are sharpened with a dense CRF.
        localize: what finds its points, see `wildcat.predictor.load`.
        refine: settings of `wildcat refine`, a second stage on the trained network; empty: none.
        needs: what a line that only the paper reports would need to be run.
    """

    name: str
    settings: Mapping[str, Any] | None
    paper: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    x: float | None = None
    line: str = "architecture (a)"
    method: str = ""
    crf: bool = False
    localize: Localize = "maps"
    refine: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    needs: str = ""


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    Attributes:
        title: the question it answers.
        metrics: the metrics in its table; the first is the paper's.
        rows: its lines.
        x_label: label of the x axis, for figures.
    """

    title: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    x_label: str = ""


def _method(title: str, name: str, **paper: float) -> Row:
    numbers = {key.replace("_", " "): value for key, value in paper.items()}
    return Row(title, method_settings(name), numbers, method=name)


def _refined(
    title: str, method: str, settings: Mapping[str, Any] | None = None, crf: bool = False, **paper: float
) -> Row:
    """A method of `wildcat refine`, on the network that WILDCAT's row trains."""
    return _second_stage(_method(title, "wildcat", **paper), title, method, settings, crf)


def _second_stage(
    first: Row, title: str, method: str, settings: Mapping[str, Any] | None = None, crf: bool = False
) -> Row:
    """A method of `wildcat refine`, on the network of another row."""
    refine = {"method": method, **(settings or {})}
    return replace(first, name=title, method=f"refine {method}", crf=crf, refine=refine)


def _pronet(**paper: float) -> tuple[Row, Row]:
    """ProNet's first stage and the whole. The paper's tables quote one number, without the stage."""
    first = _method("ProNet (log-sum-exp)", "pronet", **paper)
    return first, _second_stage(first, f"{first.name}, cascade", "pronet-cascade")


def _paper_only(title: str, needs: str, **paper: float) -> Row:
    return Row(title, None, {key.replace("_", " "): value for key, value in paper.items()}, needs=needs)


ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 1.0)
MAP_COUNTS = (1, 2, 4, 8, 12, 16)


# k+ = k- = 1, the setting of the paper's ablations.
ONE_REGION: dict[str, Any] = {"pooling": "wildcat", "architecture": "a", "kmax": 1, "kmin": 1, "num_maps": 1}

# Of tables in which the paper does not report them:
WITH_MAPS = (
    _method("RRSVM", "rrsvm"),
    _method("SPLeaP", "spleap"),
    _method("Negative parts", "negative-parts"),
    _method("WSDDN", "wsddn"),
)
DESCRIPTORS = (
    _method("Compact Bilinear Pooling", "compact-bilinear"),
    _method("MOP CNN", "mop-cnn"),
    _method("NetVLAD", "netvlad"),
)
NEWER = (_method("CSRA", "csra"), _method("gated attention MIL", "attention"))  # simple heads newer than the paper


def _alpha_rows() -> tuple[Row, ...]:
    return tuple(
        Row(f"{line}, alpha = {a:g}", settings | {"alpha": a}, x=a, line=line)
        for line, settings in (("k = 1", ONE_REGION), ("k = 0.1", ONE_REGION | {"kmax": 0.1, "kmin": None}))
        for a in ALPHAS
    )


def _map_rows() -> tuple[Row, ...]:
    paper = (89.0, 91.0, 91.6, 92.5, 92.3, 92.0)
    shared = ONE_REGION | {"alpha": 1.0}
    a = [
        Row(f"M = {m}", shared | {"num_maps": m}, {"VOC 2007": value}, x=m)
        for m, value in zip(MAP_COUNTS, paper, strict=True)
    ]
    c = [
        Row(f"M = {m}, each map pooled by itself", shared | {"num_maps": m, "architecture": "c"}, x=m, line="(c)")
        for m in MAP_COUNTS[1:]
    ]
    # A control: is the effect of more maps more than that of a stronger weight decay on a single map?
    decayed = Row("M = 1, weight decay x 8", shared | {"weight_decay": 8 * TrainConfig(num_maps=1).decay})
    return (*a, decayed, *c)


# Name on the command line -> experiment.
EXPERIMENTS: dict[str, Experiment] = {
    "table2": Experiment(
        "Classification of objects (VOC 2007, VOC 2012)",
        ("map",),
        (
            _method("global features + linear classifier", "global", VOC_2007=89.8, VOC_2012=89.2),
            _paper_only("VGG16 features", "weights of VGG16", VOC_2007=89.3, VOC_2012=89.0),
            _method("DeepMIL (max)", "deepmil", VOC_2012=86.3),
            _method("top instances", "top-instances"),
            _method("GAP, architecture (a)", "gap-a"),
            _method("WELDON", "weldon", VOC_2007=90.2),
            *_pronet(VOC_2012=89.3),
            _method("RRSVM", "rrsvm", VOC_2007=92.9),
            _method("SPLeaP", "spleap", VOC_2007=88.0),
            _method("WILDCAT", "wildcat", VOC_2007=95.0, VOC_2012=93.4),
            _method("Negative parts", "negative-parts"),
            _method("WSDDN", "wsddn"),
            *DESCRIPTORS,
            *NEWER,
        ),
    ),
    "table3": Experiment(
        "Classification of scenes (15-Scene, MIT67)",
        ("accuracy",),
        (
            _paper_only(
                "CaffeNet Places", "weights of CaffeNet, trained on Places", **{"15-Scene": 90.2, "MIT67": 68.2}
            ),
            _method("MOP CNN", "mop-cnn", MIT67=68.9),
            _method("Negative parts", "negative-parts", MIT67=77.1),
            _method("GAP, architecture (a)", "gap-a", **{"15-Scene": 88.3, "MIT67": 66.6}),
            _method("WELDON", "weldon", **{"15-Scene": 94.3, "MIT67": 78.0}),
            _method("Compact Bilinear Pooling", "compact-bilinear", MIT67=76.2),
            _method("global features + linear classifier", "global", **{"15-Scene": 91.9, "MIT67": 78.0}),
            _method("SPLeaP", "spleap", MIT67=73.5),
            _method("DeepMIL (max)", "deepmil"),
            _method("top instances", "top-instances"),
            _method("ProNet (log-sum-exp)", "pronet"),
            _method("WILDCAT", "wildcat", **{"15-Scene": 94.4, "MIT67": 84.0}),
            _method("RRSVM", "rrsvm"),
            _method("WSDDN", "wsddn"),
            _method("NetVLAD", "netvlad"),
            *NEWER,
        ),
    ),
    "table4": Experiment(
        "Classification in context (VOC 2012 Action, MS COCO)",
        ("map",),
        (
            _method("DeepMIL (max)", "deepmil", COCO=62.8),
            _method("top instances", "top-instances"),
            _method("WELDON", "weldon", VOC_2012_Action=75.0, COCO=68.8),
            _method("global features + linear classifier", "global", VOC_2012_Action=77.9, COCO=72.5),
            *_pronet(COCO=70.9),
            _method("WILDCAT", "wildcat", VOC_2012_Action=86.0, COCO=80.7),
            *WITH_MAPS,
            *DESCRIPTORS,
            *NEWER,
        ),
    ),
    "table5": Experiment(
        "Architecture: (a) classify each region, then pool; (b) pool the features, then classify",
        ("map", "accuracy", "point_ap"),
        tuple(
            Row(
                f"({letter}) {order}, {pool}",
                settings | {"architecture": letter},
                {k: v for k, v in numbers.items() if pool == "max + min"},
                line=pool,
            )
            for pool, settings in (
                ("max + min", ONE_REGION | {"alpha": 1.0}),
                ("k = 0.2, alpha = 0.7", ONE_REGION | {"kmax": 0.2, "kmin": None, "alpha": 0.7}),
            )
            for letter, order, numbers in (
                ("a", "convolution, then pooling", {"VOC 2007": 89.0, "VOC 2012 Action": 78.9, "MIT67": 69.6}),
                ("b", "pooling, then convolution", {"VOC 2007": 87.3, "VOC 2012 Action": 77.5, "MIT67": 68.1}),
            )
        ),
    ),
    "table6": Experiment(
        "Number of maps per class, M (k+ = k- = 1, alpha = 1)",
        ("map", "accuracy", "point_ap"),
        _map_rows(),
        x_label="M, maps per class",
    ),
    "table7": Experiment(
        "Ablation (k+ = k- = 1)",
        ("map", "accuracy", "point_ap"),
        (
            Row("max", ONE_REGION | {"alpha": 0.0}),
            Row("max + min", ONE_REGION | {"alpha": 1.0}, {"VOC 2007": 89.0}),
            Row("max + min, alpha = 0.7", ONE_REGION | {"alpha": 0.7}, {"VOC 2007": 90.3}),
            Row("max + min, M = 4", ONE_REGION | {"num_maps": 4, "alpha": 1.0}, {"VOC 2007": 91.6}),
            Row("max + min, alpha = 0.7, M = 4", ONE_REGION | {"num_maps": 4, "alpha": 0.7}, {"VOC 2007": 92.0}),
        ),
    ),
    "table8": Experiment(
        "Pointwise localization",
        ("point_ap", "map"),
        (
            _method("DeepMIL (max)", "deepmil", VOC_2012=74.5, COCO=41.2),
            *_pronet(VOC_2012=77.7, COCO=46.4),
            replace(_method("WSLocalization", "gap-a", VOC_2012=79.7, COCO=49.2), method="", localize="beam-search"),
            _method("GAP, architecture (a)", "gap-a"),
            _method("WELDON", "weldon"),
            _method("WILDCAT", "wildcat", VOC_2012=82.9, COCO=53.4),
            *WITH_MAPS,
            _method("Compact Bilinear Pooling", "compact-bilinear"),
            *NEWER,
        ),
    ),
    "table9": Experiment(
        "Weakly supervised segmentation",
        ("miou", "map"),
        (
            _refined("MIL-FCN", "mil-fcn", VOC_2012=24.9),
            _refined("MIL-Base + ILP + superpixels", "mil-base", {"superpixels": True}, VOC_2012=36.6),
            _refined("EM-Adapt + CRF", "em-adapt", crf=True, VOC_2012=33.8),
            _refined("CCNN + CRF", "ccnn", crf=True, VOC_2012=35.3),
            _method("DeepMIL (max)", "deepmil"),
            _method("ProNet (log-sum-exp)", "pronet"),
            _method("GAP, architecture (a)", "gap-a"),
            _method("WELDON", "weldon"),
            _method("WILDCAT", "wildcat", VOC_2012=39.2),
            replace(_method("WILDCAT + CRF", "wildcat", VOC_2012=43.7), crf=True),
            _refined("SEC + CRF", "sec", crf=True),
            _refined("WILDCAT, refined", "wildcat"),
            _refined("WILDCAT, refined + CRF", "wildcat", crf=True),
            *WITH_MAPS,
            _method("Compact Bilinear Pooling", "compact-bilinear"),
            *NEWER,
        ),
    ),
    "figure4": Experiment(
        "Weight of the negative evidence, alpha: classification",
        ("map", "accuracy"),
        _alpha_rows(),
        x_label="alpha",
    ),
    "figure5": Experiment(
        "Weight of the negative evidence, alpha: localization",
        ("point_ap", "map"),
        _alpha_rows(),
        x_label="alpha",
    ),
}


def find_experiment(name: str) -> Experiment:
    """The experiment of a table or figure of the paper.

    Raises:
        ConfigError: no such experiment.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(
            f"there is no experiment {name!r}.",
            did_you_mean(name, EXPERIMENTS) or f"Experiments are: {', '.join(EXPERIMENTS)}.",
        )
    return EXPERIMENTS[name]
