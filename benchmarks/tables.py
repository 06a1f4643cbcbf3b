"""Write docs/results.md, the results table of README.md and those of `wildcat methods` from benchmarks/results.

python benchmarks/tables.py            # write
python benchmarks/tables.py --check    # exit 1 if one of them is out of date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import scale_tables
import speed_tables

from wildcat.reproduce.experiments import EXPERIMENTS
from wildcat.reproduce.tables import COMBINED, markdown, markdown_table, percent

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "results.md"
METHODS = ROOT / "wildcat" / "method_results.json"
PLOTS = ROOT / "docs" / "images" / "reproduced"  # <experiment>-<data>.png, as `wildcat reproduce` writes them
MARKERS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
WITHOUT_DATA = (
    "Table 4 (VOC 2012 Action, MS COCO), MIT67 in table 3 and COCO in table 8 were not run: their images were not at "
    "hand. `wildcat reproduce table4 --data DIR` measures them."
)

# Rows of README.md: name -> the input of the recipe `finetune` in fine-tuning-voc.json.
FINE_TUNED = {
    "wildcat, fine-tuned: `--recipe finetune`": "448 px",
    "the same, crops verified: `wildcat refine --method pronet-cascade --epochs 20 --crops 16`": (
        "448 px, then the cascade with --epochs 20 --crops 16"
    ),
    "two such cascades, at 448 and 576 px: `wildcat ensemble --combine average`": (
        "448 and 576 px, each with its cascade (--epochs 20 --crops 16), averaged (wildcat ensemble)"
    ),
}

Result = dict[str, Any]  # the content of one result file


def input_sizes(settings: dict[str, Any]) -> str:
    """The input size, or the sizes and how their networks are combined."""
    if not settings.get("sizes"):
        return f"{settings['image_size']} px"
    mirrored = ", with mirrored views" if settings.get("views", settings.get("flip")) == "horizontal" else ""
    combined = COMBINED[settings.get("combine", "average")]
    return f"{settings['sizes'].replace(',', ' + ')} px, one network per size, combined by {combined}{mirrored}"


def pooling(result: Result) -> str:
    s = result["settings"]
    rows = [
        [name, row["settings"]["num_maps"], *(percent(row[key]) for key in ("map", "point_ap", "pointing_game"))]
        for name, row in result["results"].items()
    ]
    return (
        f"{s['data']}: frozen {s['backbone']} at {input_sizes(s)}, {s['epochs']} epochs of the head, mean ± standard "
        f"deviation over {s['seeds']} seeds; AP over all recall points (voc10), point tolerance 18 px, last epoch.\n\n"
        + markdown_table(["pooling", "M", "mAP %", "point AP %", "pointing game %"], rows)
    )


def masks(result: Result) -> str:
    s = result["settings"]
    columns = {
        "mAP %": "map",
        "point AP %": "point_ap",
        "mIoU %": "miou",
        "mIoU with CRF %": "miou_crf",
        "mIoU, fitted %": "miou_calibrated",
        "mIoU, best background %": "miou_hindsight",
    }
    rows = [
        [name, *(percent(row[key]) if key in row else "-" for key in columns.values())]
        for name, row in result["results"].items()
    ]
    return (
        f"{s['data']}: frozen {s['backbone']} at {s['image_size']} px, {s['epochs']} epochs, averaged with the "
        "mirrored view; mean IoU of 21 classes with the default thresholds (probability 0.5, raw map above 0), "
        f"mean ± standard deviation over {s['seeds']} seeds. *Fitted*: background threshold of `wildcat calibrate`, on "
        f"the masks of {s['masks_of_train']} training images. *Best background*: the best threshold on the test "
        "masks; an upper bound, not deployable. *Refined*: `wildcat refine`, from image-level labels only.\n\n"
        + markdown_table(["", *columns], rows)
    )


def refine_ablation(result: Result) -> str:
    s = result["settings"]
    columns = {"mAP %": "map", "point AP %": "point_ap", "mIoU %": "miou", "mIoU with CRF %": "miou_crf"}
    rows = [
        [name, *(percent(row[key]) for key in columns.values()), row.get("cpu_minutes", "-")]
        for name, row in result["results"].items()
    ]
    wrong = f" of which {s['wrong_labels']:.0%} of the images have a wrong one" if s.get("wrong_labels") else " only"
    return (
        f"{s['data']}: `wildcat refine` of {s['run']}, from image-level labels{wrong}, one seed, averaged with the "
        "mirrored view. *Propagated*: with `--propagate`. Minutes of processor time of `refine`, without features that "
        "an earlier row has cached.\n\n" + markdown_table(["refined with", *columns, "CPU minutes"], rows)
    )


def cascade(result: Result) -> str:
    s, held_out = result["settings"], result["results"]["held_out"]
    columns = {"mAP %": "map", "point AP %": "point_ap", "pointing game %": "pointing_game"}
    rows = [
        [name, *(percent(row[key]) for key in columns.values())] for name, row in result["results"]["measured"].items()
    ]
    chosen = ", ".join(f"{name} {percent(row['map'])}" for name, row in held_out.items())
    choice = "The weight is the default, which was chosen on training images that were held out."
    if held_out:
        choice = f"The weight was chosen by the mAP on a fifth of the training images that was held out: {chosen}."
    return (
        f"{s['data']}: `wildcat refine --method pronet-cascade` of `wildcat train --method pronet`, frozen "
        f"{s['backbone']} at {s['image_size']} px, at most {s['crops']} crops per image, last epoch, seeds: "
        f"{s['seeds']}. {choice}\n\n" + markdown_table(["", *columns], rows)
    )


def parts(result: Result) -> str:
    s = result["settings"]
    columns = {"mAP %": "map", "point AP %": "point_ap", "mIoU %": "miou"}
    columns |= {"best map covers %": "coverage_best", "all maps cover %": "coverage_all"}
    rows = [
        [
            name,
            *(percent(row[key]) for key in columns.values()),
            *(f"{row[key]['mean']:.2f}" for key in ("overlap", "purity", "maps_in_use")),
        ]
        for name, row in result["results"].items()
    ]
    num_maps = next(iter(result["results"].values()))["settings"]["num_maps"]
    columns_of_maps = ("overlap", "purity", "maps in use")
    return (
        f"{s['data']}: frozen {s['backbone']} at {s['image_size']} px, {s['epochs']} epochs, M = {num_maps}, last "
        f"epoch, seeds: {s['seeds']}. For the maps of each class on images that have it, with the top fifth of the "
        "regions of a map: share of the true mask that it covers; *overlap*, the IoU of two maps; *purity* of clusters "
        f"of the features that the maps select against the index of the map (chance: {1 / num_maps:.2f}); *maps in "
        "use*, exp of the entropy of their shares. `benchmarks/parts.py` has the definitions.\n\n"
        + markdown_table(["class-wise pooling", *columns, *columns_of_maps], rows)
    )


def views(result: Result) -> str:
    s = result["settings"]
    rows = []
    for name, row in result["results"].items():
        low, high = row["ratio_low"], row["ratio_high"]
        time = f"{row['ratio']:.2f}" + (f" ({low:.1f} to {high:.1f})" if high > low else "")
        rows.append([name, *(percent(row[key]) for key in ("map", "point_ap", "miou")), time])
    return (
        f"{s['data']}: one run ({s['pooling']}, frozen {s['backbone']} trained at {s['image_size']} px, stride "
        f"{s['output_stride']}); masks without a CRF at the default thresholds. Time of the network on {s['device']} "
        f"relative to the first row, median of {s['rounds']} rounds (lowest to highest; shared machine).\n\n"
        + markdown_table(["", "mAP %", "point AP %", "mIoU %", "time"], rows)
    )


def scenes(result: Result) -> str:
    s = result["settings"]
    rows = [
        [
            name,
            percent(row["given_split"]["accuracy"]),
            percent(row["random_splits"]["accuracy"]),
            percent(row["random_splits"]["class_mean_accuracy"]),
        ]
        for name, row in result["results"].items()
    ]
    return (
        f"15-Scene: frozen {s['backbone']} at {input_sizes(s)}, {s['epochs']} epochs of the head; accuracy on the "
        f"given split, and mean ± standard deviation over {s['seeds']} random splits of 100 training images "
        "per class.\n\n"
        + markdown_table(["pooling", "given split %", "random splits %", "class mean, random splits %"], rows)
    )


# The paper's results (ResNet-101, all images, several sizes: tables 2, 3, 8 and 9; mIoU without a CRF).
PAPER_VOC = {"map": 0.934, "point_ap": 0.829, "miou": 0.392}
PAPER_SCENES = {"accuracy": 0.944}


def fine_tuning(result: Result, paper: Mapping[str, float] | None = None) -> str:
    s = result["settings"]
    names = {"mAP": "map", "accuracy": "accuracy", "ROC AUC": "roc_auc", "point AP": "point_ap", "mIoU": "miou"}
    rows = [(name, text, row) for name, part in result["results"].items() for text, row in part["inputs"].items()]
    columns = {name: key for name, key in names.items() if any(key in row for _, _, row in rows)}
    cells = [
        [f"`{name}`", text, *(percent(row[key]) for key in columns.values()), _seeds(row), _seconds(row)]
        for name, text, row in rows
    ]
    if paper:
        values = (percent(paper[key]) if key in paper else "-" for key in columns.values())
        cells.append(["the paper: ResNet-101, all images", "several sizes", *values, "", ""])
    return (
        f"{s['data']}: recipe (with the settings that replace its own), input size, and mean ± standard deviation over "
        f"the seeds; views averaged: {s['views']}. Every training keeps its last epoch. Time: minutes of training "
        "while the machine did other work too.\n\n"
        + markdown_table(["recipe", "input", *(f"{name} %" for name in columns), "seeds", "minutes"], cells)
    )


def _seeds(row: Mapping[str, Any]) -> str:
    return str(max(len(value["values"]) for value in row.values()))


def _seconds(row: Mapping[str, Any]) -> str:
    return f"{row['seconds']['mean'] / 60:.0f}" if "seconds" in row else ""


def solar(result: Result) -> str:
    s, r = result["settings"], result["results"]
    members, metrics = r["members"], r["classification"]
    networks = " and ".join(
        f"{m['backbone']} at {m['image_size']} px ({sum(len(stage['history']) for stage in m['stages'])} epochs)"
        for m in members
    )
    single = ", ".join(percent(m["four_views"]["accuracy"]) for m in members)
    return (
        f"Solar cells, held-out quarter ({r['images']} cells), every layer fine-tuned, one seed: {networks}"
        f"{', scores averaged' if len(members) > 1 else ''}: accuracy **{percent(metrics['accuracy'])} %**, "
        f"ROC AUC {metrics['roc_auc']:.3f}, AP of defective {percent(metrics['ap']['defective'])} % (average of four "
        f"mirrored views; one view {percent(r['one_view']['accuracy'])} % and {r['one_view']['roc_auc']:.3f}"
        f"{f'; each network alone {single} %' if len(members) > 1 else ''}). Published reference: {s['anchor']}."
    )


def audit(result: Result) -> str:
    s, r = result["settings"], result["results"]
    columns = {
        "first tenth of the list %": "precision_at_tenth",
        "removed %": "removed_in_tenth",
        "added %": "added_in_tenth",
        "replaced %": "replaced_in_tenth",
        "suspects: right %": "suspect_precision",
        "suspects: found %": "suspect_recall",
    }
    return (
        f"{s['data']}, {s['split']}, {s['images']} images: one class of {100 * s['fraction']:g} % of the images is "
        f"removed, added or replaced at random; heads on frozen {s['backbone']} at {s['image_size']} px, {s['folds']} "
        f"folds, mean ± standard deviation over {s['seeds']} seeds. Share of images with such a label in the first "
        "tenth of the list (in random order: 10 %), and how many of each kind are there; the same among the "
        f"{r['suspects']['mean']:.0f} images that confident learning suspects. Wrong labels of the data set itself "
        "count as mistakes.\n\n" + markdown_table(list(columns), [[percent(r[key]) for key in columns.values()]])
    )


def label_studio(result: Result) -> str:
    s, r = result["settings"], result["results"]
    row = [
        f"{r['boxes_right']} of {r['boxes']} ({percent(r['boxes_right'] / r['boxes'])} %)",
        f"{r['boxes_right']} of {r['objects']}",
        f"{r['classes_right']} of {r['classes']} ({percent(r['classes_right'] / r['classes'])} %)",
        f"{r['classes_right']} of {r['classes_right'] + r['classes_missing']}",
        percent(r["map_first"]),
        percent(r["map_second"]),
    ]
    columns = ["right boxes", "objects with a box", "right classes", "classes found", "mAP %", "mAP % after"]
    return (
        f"{s['data']}: {s['labelled']} images labelled with their classes in Label Studio, `wildcat train "
        f"{s['train']}` on its CSV export, predictions of `wildcat serve --label-studio` for {s['next']} others, "
        f"corrected to the ground truth, and trained again on all. A box is right (needs no correction) if its IoU "
        f"with an object of its class is above 0.5. mAP of both models on {s['held_out']} further images.\n\n"
        + markdown_table(columns, [row])
    )


# Group -> result file -> its heading and the function that renders it.
SECTIONS: dict[str, dict[str, tuple[str, Callable[[Result], str]]]] = {
    "Accuracy": {
        "pooling.json": ("Pooling", pooling),
        "pooling-sizes.json": ("Pooling, several input sizes", pooling),
        "masks.json": ("Masks from image-level labels", masks),
        "refine-ablation.json": ("The steps of wildcat refine", refine_ablation),
        "refine-wrong-labels.json": ("wildcat refine on wrong labels", refine_ablation),
        "refine-finetuned.json": ("wildcat refine of a fine-tuned run", refine_ablation),
        "cascade-small.json": ("Second stage on crops", cascade),
        "parts.json": ("Modality maps as parts", parts),
        "views.json": ("Test-time augmentation and output stride", views),
        "fine-tuning-voc.json": ("Fine-tuning", partial(fine_tuning, paper=PAPER_VOC)),
        "learning-curve.json": ("Fewer training images, frozen backbone", fine_tuning),
        "fine-tuning-maps.json": ("Fine-tuning with other M and alpha", fine_tuning),
        "fine-tuning-maps-scenes.json": ("Fine-tuning with other M and alpha, 15-Scene", fine_tuning),
        "scenes.json": ("15-Scene", scenes),
        "scenes-sizes.json": ("15-Scene, several input sizes", scenes),
        "fine-tuning-scenes.json": ("15-Scene, fine-tuned", partial(fine_tuning, paper=PAPER_SCENES)),
        "audit.json": ("Wrong labels found by wildcat audit", audit),
        "label-studio.json": ("A round trip through Label Studio", label_studio),
        "solar-recipe.json": ("Solar cells, recipe solar", solar),
        "solar-sizes.json": ("Solar cells, two input sizes", solar),
        "solar.json": ("Solar cells", solar),
        "fine-tuning-solar.json": ("Solar cells, several seeds", fine_tuning),
    },
    "Speed": {
        "head-cost.json": ("Cost of the head", speed_tables.head_cost),
        "head-cost-1000.json": ("Cost of the head, 1,000 classes", speed_tables.head_cost),
        "spatial-pool.json": ("Spatial pooling", speed_tables.spatial_pool),
        "scaling.json": ("Growth of the cost", speed_tables.scaling),
        "many-classes.json": ("Many classes and images", speed_tables.many_classes),
        "costs.json": ("Profile", speed_tables.costs),
        "crf.json": ("Dense CRF", speed_tables.crf),
        "engines.json": ("Engines", speed_tables.engines),
        "engine-accuracy.json": ("Accuracy of the engines", speed_tables.engine_accuracy),
        "cold-start.json": ("Cold start", speed_tables.cold_start),
        "predict-throughput.json": ("Prediction throughput", speed_tables.predict_throughput),
        "predict-throughput-avx2.json": ("Prediction throughput without AVX-512", speed_tables.predict_throughput),
        "serve-load.json": ("Service under load", speed_tables.serve_load),
        "serve-load-224.json": ("Service under load, 224 px", speed_tables.serve_load),
        "serve-load-448.json": ("Service under load, 448 px", speed_tables.serve_load),
        "head-training.json": ("Head training", speed_tables.head_training),
        "train-throughput.json": ("Training throughput", speed_tables.train_throughput),
        "torchrun-train.json": ("Training in several processes", speed_tables.torchrun_train),
    },
    "Scale and robustness": {
        "ray-predict.json": ("Prediction with Ray", speed_tables.ray_predict),
        "billion.json": ("Cost per image at scale", scale_tables.billion),
        "long-run.json": ("Memory in long runs", scale_tables.long_run),
        "soak.json": ("Killed processes", scale_tables.soak),
    },
}


def readme_table(result: Result) -> str:
    """The short table of README.md: points and masks of each pooling, from masks.json, and fine-tuned runs."""
    s = result["settings"]
    columns = {"mAP %": "map", "point AP %": "point_ap", "mIoU with CRF %": "miou_crf"}
    rows = [[name, *(percent(row[key]) for key in columns.values())] for name, row in result["results"].items()]
    fine_tuned = read_result("fine-tuning-voc.json")["results"]["finetune"]["inputs"]
    for name, key in FINE_TUNED.items():
        row = fine_tuned[key]
        seeds = _seeds(row)
        rows.append(
            [f"{name} ({seeds} seed{'s' * (seeds != '1')})", *(percent(row.get(key)) for key in columns.values())]
        )
    return (
        f"{s['data']}, trained from image-level labels; frozen {s['backbone']} at {s['image_size']} px, "
        f"mean ± standard deviation over {s['seeds']} seeds:\n\n" + markdown_table(["pooling", *columns], rows)
    )


def source_line(name: str, result: Result) -> str:
    """File, date, command and versions of a result."""
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if k in ("torch", "timm", "python"))
    return f"<sub>{name}, {result['date']}; `{result['command']}`; {versions}</sub>"


def results_page() -> str:
    """The text of docs/results.md."""
    lines = ["# Results", "", "Generated by `python benchmarks/tables.py` from the files in `benchmarks/results`.", ""]
    for group, sections in SECTIONS.items():
        lines += [f"## {group}", ""]
        for name, (heading, render) in sections.items():
            if (RESULTS / name).is_file():
                result = read_result(name)
                lines += [f"### {heading}", "", render(result), "", source_line(name, result), ""]
    lines += ["## Experiments of the paper", "", WITHOUT_DATA, ""]
    for path in sorted((RESULTS / "reproduced").glob("*.json")):
        result = json.loads(path.read_text("utf-8"))
        settings = result["settings"]
        lines += [f"### {settings['experiment'].capitalize()}, {settings['data']}", "", markdown(result), ""]
        plot = PLOTS / path.with_suffix(".png").name
        if plot.is_file():
            lines += [f"![{settings['title']}]({plot.relative_to(PAGE.parent).as_posix()})", ""]
        lines += [source_line(f"reproduced/{path.name}", result), ""]
    return "\n".join(lines)


def method_results() -> str:
    """The results of each method on VOC 2012 mini, from tables 2, 8 and 9, as JSON."""
    found: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    for table in ("table2", "table8", "table9"):
        path = RESULTS / "reproduced" / f"{table}-VOC-2012-mini.json"
        if path.is_file():
            result = json.loads(path.read_text("utf-8"))
            settings = settings or result["settings"]
            for row in EXPERIMENTS[table].rows:
                metrics = result["results"].get(row.name, {}).get("metrics", {})
                miou = "miou_crf" if row.crf else "miou"
                kept = {"map": "map", "point_ap": "point_ap", "miou": miou}
                means = {
                    name: {n: metrics[key][n] for n in ("mean", "std")} for key, name in kept.items() if key in metrics
                }
                found[row.method] = means | found.get(row.method, {})
    found = {name: metrics for name, metrics in found.items() if name and metrics}
    sizes = " + ".join(map(str, settings["sizes"]))
    test = settings["test"]
    setting = (
        f"Per cent on {settings['data']}, {test}, {settings['ap_variant']} AP: frozen {settings['backbone']} "
        f"at {sizes} px, {settings['epochs']} epochs of the head, mean of {settings['seeds']} seeds."
    )
    return json.dumps({"setting": setting, "results": found}, indent=1) + "\n"


def read_result(name: str) -> Result:
    return dict(json.loads((RESULTS / name).read_text("utf-8")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    check = parser.parse_args().check
    table = readme_table(read_result("masks.json"))
    texts = {
        README: MARKERS.sub(lambda match: f"{match[1]}{table}\n{match[2]}", README.read_text("utf-8")),
        PAGE: results_page(),
        METHODS: method_results(),
    }
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in stale:
        if not check:
            path.write_text(texts[path], "utf-8")
        print(f"{path.relative_to(ROOT)} {'is out of date: python benchmarks/tables.py' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
