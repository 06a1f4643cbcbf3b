"""Write docs/results.md and the results of the README from the files in benchmarks/results.

python benchmarks/tables.py            # write
python benchmarks/tables.py --check    # exit 1 if they are out of date
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scale_tables

from wildcat.reproduce.tables import COMBINED, markdown, percent

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def sizes_of(settings: dict[str, Any]) -> str:
    """The input size, or how several are combined."""
    if not settings.get("sizes"):
        return f"{settings['image_size']} px"
    views = settings.get("views", settings.get("flip"))
    mirrored = ", each image also mirrored" if views == "horizontal" else ""
    how = COMBINED[settings.get("combine", "average")]
    return f"{settings['sizes'].replace(',', ' + ')} px, one network a size, combined by {how}{mirrored}"


def pooling(result: dict[str, Any]) -> str:
    """Poolings on a data set with boxes."""
    s = result["settings"]
    lines = [
        f"Pooling, {s['data']}: frozen {s['backbone']} at {sizes_of(s)}, {s['epochs']} epochs of the head, "
        f"mean ± standard deviation over {s['seeds']} seeds; all-point AP (voc10), point tolerance 18 px, last epoch.",
        "",
        "| pooling | M | mAP % | point AP % | pointing game % |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["results"].items():
        figures = " | ".join(percent(row[k]) for k in ("map", "point_ap", "pointing_game"))
        lines.append(f"| {name} | {row['settings']['num_maps']} | {figures} |")
    return "\n".join(lines)


def masks(result: dict[str, Any]) -> str:
    """Masks of each pooling, with and without a CRF, and of a refined model."""
    s = result["settings"]
    lines = [
        f"Masks from tags, {s['data']}: frozen {s['backbone']} at {s['image_size']} px, {s['epochs']} epochs, "
        "each image also mirrored; mean IoU of 21 classes with the defaults (gate 0.5, raw map above 0), mean ± "
        f"standard deviation over {s['seeds']} seeds. *Fitted*: background of `wildcat calibrate`, on the masks of "
        f"{s['masks_of_train']} training images. *Hindsight*: the best background on the very masks measured; not "
        "deployable. *Refined*: `wildcat refine`, from tags alone.",
        "",
        "| | mAP % | point AP % | mIoU % | mIoU with CRF % | mIoU, fitted % | mIoU, hindsight % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["results"].items():
        keys = ("map", "point_ap", "miou", "miou_crf", "miou_calibrated", "miou_hindsight")
        figures = " | ".join(percent(row[k]) if k in row else "-" for k in keys)
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def views(result: dict[str, Any]) -> str:
    """Ways of looking at an image."""
    s = result["settings"]
    lines = [
        f"Ways of looking at an image, {s['data']}: one run ({s['pooling']}, frozen {s['backbone']} trained at "
        f"{s['image_size']} px, stride {s['output_stride']}); masks without a CRF at the defaults. Time of the network "
        f"on {s['device']} as a ratio to the first row, median of {s['rounds']} rounds (lowest to highest: the machine "
        "was shared).",
        "",
        "| | mAP % | point AP % | mIoU % | time |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["results"].items():
        figures = " | ".join(f"{100 * row[k]:.1f}" for k in ("map", "point_ap", "miou"))
        spread = f" ({row['ratio_low']:.1f} to {row['ratio_high']:.1f})" if row["ratio_high"] > row["ratio_low"] else ""
        lines.append(f"| {name} | {figures} | {row['ratio']:.2f}{spread} |")
    return "\n".join(lines)


def scenes(result: dict[str, Any]) -> str:
    """15-Scene."""
    s = result["settings"]
    lines = [
        f"15-Scene: frozen {s['backbone']} at {sizes_of(s)}, {s['epochs']} epochs of the head; accuracy on the "
        f"given split, and over {s['random_splits']} random splits of 100 training images a class.",
        "",
        "| pooling | given split % | random splits % | class mean, random splits % |",
        "|---|---|---|---|",
    ]
    for name, row in result["results"].items():
        spread = row["random_splits"]
        lines.append(
            f"| {name} | {percent(row['given_split']['accuracy'])} | {percent(spread['accuracy'])} "
            f"| {percent(spread['class_mean_accuracy'])} |"
        )
    return "\n".join(lines)


def solar(result: dict[str, Any]) -> str:
    """Solar cells."""
    s, r = result["settings"], result["results"]
    c = r["classification"]
    how = " and ".join(
        f"{m['backbone']} at {m['image_size']} px ({sum(len(stage['history']) for stage in m['stages'])} epochs)"
        for m in r["members"]
    )
    several = len(r["members"]) > 1
    alone = ", ".join(percent(m["four_views"]["accuracy"]) for m in r["members"])
    return (
        f"Solar cells, held-out quarter ({r['images']} cells), every layer fine-tuned, one seed: {how}"
        f"{', scores averaged' if several else ''}: accuracy **{percent(c['accuracy'])} %**, "
        f"ROC AUC {c['roc_auc']:.3f}, AP of defective {percent(c['ap']['defective'])} % (four mirrored views averaged; "
        f"the image alone {percent(r['one_view']['accuracy'])} % and {r['one_view']['roc_auc']:.3f}"
        f"{f'; the networks by themselves {alone} %' if several else ''}). Published anchor: {s['anchor']}."
    )


def head_cost(result: dict[str, Any]) -> str:
    """The head's cost."""
    s, m = result["settings"], result["machine"]
    tasks = list(next(iter(result["results"].values())))
    lines = [
        f"Whole model against bare backbone, {s['size']} px, batch {s['batch']}, C = {s['classes']}, "
        f"M = {s['num_maps']}, {s['dtype']} on {m['cores']} CPU cores;"
        f" median ratio of {s['rounds']} rounds timed in turn (quartiles).",
        "",
        f"| backbone | {' | '.join(tasks)} |",
        f"|---|{'---|' * len(tasks)}",
    ]
    for name, row in result["results"].items():
        cells = [
            f"{row[k]['ratio_median']:.3f} ({row[k]['ratio_quartiles'][0]:.3f} to {row[k]['ratio_quartiles'][1]:.3f})"
            for k in tasks
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def engines(result: dict[str, Any]) -> str:
    """Engines in turn, and the usual ways to a heatmap."""
    s, m, rows = result["settings"], result["machine"], result["results"]
    names = [
        "hook CAM",
        *dict.fromkeys(n for row in rows.values() for n in row["rows"] if " " in n and n != "hook CAM"),
    ]
    lines = [
        f"How many times faster than the network as it is in torch, float32: scores and class maps of {s['classes']} "
        f"classes, batches of {s['batch']}, {m['threads']} threads of {m['processor']}; median of {s['rounds']} rounds "
        "timed in turn (quartiles).",
        "",
        f"| | {' | '.join(rows)} |",
        f"|---|{'---|' * len(rows)}",
    ]
    for name in names:
        cells = [row["rows"].get(name) for row in rows.values()]
        shown = [
            f"{c['speedup']:.2f} ({c['quartiles'][0]:.2f} to {c['quartiles'][1]:.2f})" if c else "-" for c in cells
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    if all("gradcam" in row for row in rows.values()):
        cells = [
            f"{row['gradcam']['eager']['speedup']:.0f}, {row['gradcam']['best']['speedup']:.0f}"
            for row in rows.values()
        ]
        lines.append(f"| over GradCAM, a call a class: torch as it is, best engine | {' | '.join(cells)} |")
    return "\n".join(lines)


def engine_accuracy(result: dict[str, Any]) -> str:
    """What engines cost in accuracy."""
    s = result["settings"]
    lines = [
        f"{s['data']}, {s['images']} images of {s['split']}: {s['backbone']} at {s['image_size']} px on each "
        f"engine; int8 ranges from {s['calibration']} images of {s['calibration_split']}; all-point AP (voc10), "
        "point tolerance 18 px.",
        "",
        "| engine | mAP % | change | point AP % | change |",
        "|---|---|---|---|---|",
    ]
    first = next(iter(result["results"].values()))
    for name, row in result["results"].items():
        cells = [f"{100 * row[k]:.2f} | {100 * (row[k] - first[k]):+.2f}" for k in ("map", "point_ap")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pool_cost(result: dict[str, Any]) -> str:
    """The spatial pooling against a full sort."""
    s, r = result["settings"], result["results"]
    shape = " x ".join(map(str, s["shape"]))
    faster, smaller = (r[f"{key} ratio"] for key in ("seconds", "memory_mb"))
    return (
        f"`spatial_pool` forward and backward on {shape} maps, k = {s['k']}, alpha = {s['alpha']}: "
        f"{faster['median']:.2f} times faster than sorting every map ({faster['lowest']:.2f} to "
        f"{faster['highest']:.2f} over {s['rounds']} pairs of processes), with {smaller['median']:.2f} times less "
        f"memory ({smaller['lowest']:.2f} to {smaller['highest']:.2f})."
    )


def costs(result: dict[str, Any]) -> str:
    """Where the time goes."""
    s, r = result["settings"], result["results"]
    lines = [f"Where the time goes, {s['backbone']} at {s['size']} px, batches of {s['batch']}, torch:", ""]
    for name in ("a pass", "a training step"):
        parts = ", ".join(f"{group} {100 * share:.0f} %" for group, share in list(r[name].items())[:4])
        lines.append(f"- {name}: {parts};")
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in r["an image, milliseconds"].items())
    lines.append(f"- an image of 500 x 375 from JPEG to row, in milliseconds on one core: {stages}.")
    return "\n".join(lines)


def scaling(result: dict[str, Any]) -> str:
    """How cost grows."""
    s, m = result["settings"], result["machine"]
    lines = [
        f"Cost of scores and class maps, {s['backbone']} on {s['device']}, {m['threads']} threads of {m['processor']}; "
        "what is not varied is 20 classes, M = 4, 224 px, a batch of 8; exponent of the setting (lowest and highest of "
        f"{s['rounds']} rounds): 1 is linear, 0 is free.",
        "",
        "| varied | settings | seconds | exponent |",
        "|---|---|---|---|",
    ]
    for name, row in result["results"].items():
        settings, seconds = ", ".join(map(str, row["settings"])), ", ".join(f"{x:.3f}" for x in row["seconds"])
        lines.append(
            f"| {name} | {settings} | {seconds} | {row['exponent']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f}) |"
        )
    return "\n".join(lines)


def serve_load(result: dict[str, Any]) -> str:
    """The service under load."""
    s, r = result["settings"], result["results"]
    service, crowd, memory = r["service"], r["crowd"], r["memory_mb"]
    early, late = s["requests"].split(",")
    refused = sum(count for status, count in crowd["statuses"].items() if status == "503")
    ratios = r["ratio"]["values"]
    return (
        f"`wildcat serve`, {s['backbone']} at {s['input_size']} px, {s['classes']} classes, images of {s['width']} x "
        f"{s['height']}, {s['clients']} clients on the same {result['machine']['cores']} cores for "
        f"{s['seconds']:g} s in {s['rounds']} rounds: {service['per_s']['mean']:.1f} images a second, "
        f"**{statistics.median(ratios):.2f}** of the bare network in batches of {s['batch']} (median; "
        f"{min(ratios):.2f} to {max(ratios):.2f}), which takes its turns between them and does "
        f"{r['bare']['per_s']['mean']:.1f}; latency {service['latency_p50_s']['mean']:.2f} s (median), "
        f"{service['latency_p95_s']['mean']:.2f} s (95 %). With {crowd['clients']} clients {crowd['per_s']:.1f} a "
        f"second, and {refused:,} were told to come back (503). Memory {memory[early]:.0f} MB after {int(early):,} "
        f"requests, {memory[late]:.0f} MB after {int(late):,}. Of {r['broken']['bodies']} broken bodies "
        f"{r['broken']['answered_4xx']} were answered with 4xx, and the service "
        f"{'went on' if r['broken']['alive_after'] else 'died'}."
    )


def predict_throughput(result: dict[str, Any]) -> str:
    """From disk to rows, against the network."""
    s, r = result["settings"], dict(result["results"])
    memory = r.pop("peak memory in MB")
    lines = [
        f"`wildcat predict` over {s['count']:,} JPEGs on disk, {', '.join(s['backbones'])}, against its own network on "
        f"random tensors, images a second ({s['rounds']} rounds in turn):",
        "",
        "| | predict | network | ratio (lowest to highest) |",
        "|---|---|---|---|",
    ]
    for name, row in r.items():
        rates = [f"{row['images a second'][k]['mean']:.1f}" for k in ("predict", "network")]
        ratio = f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
        lines.append(f"| {name} | {' | '.join(rates)} | {ratio} |")
    peaks = ", ".join(f"{megabytes:.0f} MB for {name}" for name, megabytes in memory.items() if name != "ratio")
    return "\n".join([*lines, "", f"Peak memory of the process with a tiny network: {peaks} ({memory['ratio']:.3f})."])


def head_training(result: dict[str, Any]) -> str:
    """From tags to a head, against a forward pass."""
    s, r = result["settings"], result["results"]
    count, stages = r["images"], r["profile"]
    seconds, ratio = ({name: row["mean"] for name, row in r[key].items()} for key in ("seconds", "ratio"))
    parts = ", ".join(f"{name} {taken:.1f}" for name, taken in stages.items())
    full, amp = (
        f"{100 * r['val'][way]['map']:.1f} / {100 * r['val'][way]['point_ap']:.1f}"
        for way in ("command", "command --amp")
    )
    return (
        f"`wildcat train --tune head`, {s['backbone']} at {s['image_size']} px, {s['epochs']} epochs, {count['train']} "
        f"training images and {count['val']} of val: {seconds['command']:.0f} s from typing the command to a trained "
        f"model, {ratio['command / forward']:.2f} times a single forward pass of the backbone over the same images "
        f"as tensors ({seconds['forward']:.0f} s; {ratio['command / folded']:.2f} times one with its normalisation "
        f"folded, as features are computed). With `--amp`, whose frozen backbone computes in bfloat16, "
        f"{seconds['command --amp']:.0f} s: {ratio['command --amp / forward']:.2f} times the same pass "
        f"({ratio['command --amp / forward bf16']:.2f} times one in bfloat16, {seconds['forward bf16']:.0f} s); mAP / "
        f"point AP on val {amp} instead of {full}. Seconds of the stages in one process, without `--amp`: {parts}."
    )


def torchrun_train(result: dict[str, Any]) -> str:
    """Several processes against one."""
    lines = [
        f"Training by several processes on the same {result['settings']['cores']} cores, under torchrun:",
        "",
        "| | processes | images a second | distance of the weights | of the metric on val |",
        "|---|---|---|---|---|",
    ]
    for name, training in result["results"].items():
        for size, row in training["processes"].items():
            apart = row["difference"]
            lines.append(
                f"| {name} | {size} | {row['images_per_second']['mean']:.1f} | {apart['weights']:.1e} "
                f"| {apart['val_metric']:.1e} |"
            )
    return "\n".join(lines)


def ray_predict(result: dict[str, Any]) -> str:
    """Ray against one process."""
    s, r = result["settings"], result["results"]
    rates = ", ".join(f"{way} {row['mean']:.1f}" for way, row in r["images a second"].items())
    return (
        f"`--engine ray` with {s['workers']} workers against one process on the same {s['cores']} cores, images a "
        f"second: {rates}; ratio {r['ratio']:.2f}, {r['seconds to start']:.1f} s to start."
    )


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "solar.json": solar,
    "pooling.json": pooling,
    "pooling-sizes.json": pooling,
    "masks.json": masks,
    "views.json": views,
    "scenes.json": scenes,
    "scenes-sizes.json": scenes,
    "head-cost.json": head_cost,
    "head-cost-1000.json": head_cost,
    "engines.json": engines,
    "engine-accuracy.json": engine_accuracy,
    "spatial-pool.json": pool_cost,
    "scaling.json": scaling,
    "costs.json": costs,
    "serve-load.json": serve_load,
    "predict-throughput.json": predict_throughput,
    "head-training.json": head_training,
    "torchrun-train.json": torchrun_train,
    "ray-predict.json": ray_predict,
    "soak.json": scale_tables.soak,
    "long-run.json": scale_tables.long_run,
    "failures.json": scale_tables.failures,
    "billion.json": scale_tables.billion,
}


HEADLINES = ("solar.json", "pooling.json", "masks.json", "engines.json")
"""What the README shows; docs/results.md has everything."""


def reproduced_table(path: Path, result: dict[str, Any]) -> str:
    """A table or figure of the paper, with its plot where it has one."""
    plot = path.with_suffix(".png")
    shown = f"\n\n![{result['settings']['title']}](../{plot.relative_to(ROOT).as_posix()})" if plot.is_file() else ""
    return markdown(result) + shown


def rendered() -> dict[Path, str]:
    """What the README and docs/results.md should hold."""
    results = {n: json.loads((RESULTS / n).read_text("utf-8")) for n in SECTIONS if (RESULTS / n).is_file()}
    sections = {name: SECTIONS[name](result) for name, result in results.items()}
    for path in sorted((RESULTS / "reproduced").glob("*.json")):
        results[f"reproduced/{path.name}"] = result = json.loads(path.read_text("utf-8"))
        sections[f"reproduced/{path.name}"] = reproduced_table(path, result)
    page = ["# Results", "", "Generated by `python benchmarks/tables.py` from the files in `benchmarks/results`.", ""]
    for name, text in sections.items():
        versions = ", ".join(
            f"{k} {v}" for k, v in results[name]["versions"].items() if k in ("torch", "timm", "python")
        )
        page += [text, "", f"<sub>{name}, {results[name]['date']}; `{results[name]['command']}`; {versions}</sub>", ""]
    readme = ROOT / "README.md"
    body = "\n\n".join(sections[name] for name in HEADLINES if name in sections)
    text = MARKS.sub(lambda found: f"{found[1]}{body}\n{found[2]}", readme.read_text("utf-8"))
    return {readme: text, ROOT / "docs" / "results.md": "\n".join(page)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [p for p, text in rendered().items() if not p.is_file() or p.read_text("utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is out of date: python benchmarks/tables.py' if check else 'written'}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(rendered()[path], "utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
