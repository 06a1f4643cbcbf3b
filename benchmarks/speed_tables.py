"""The tables about speed, for `tables.py`: result file in, Markdown out."""

from __future__ import annotations

import statistics
from typing import Any

from wildcat.reproduce.tables import markdown_table, percent

Result = dict[str, Any]  # the content of one result file


def head_cost(result: Result) -> str:
    s = result["settings"]
    tasks = list(next(iter(result["results"].values())))
    rows = []
    for name, row in result["results"].items():
        cells = [f"{row[task]['ratio_median']:.3f} ({_range(row[task]['ratio_quartiles'], 3)})" for task in tasks]
        rows.append([name, *cells])
    return (
        f"Time of the whole model relative to the bare backbone, {s['size']} px, batch {s['batch']}, C = "
        f"{s['classes']}, M = {s['num_maps']}, {s['dtype']} on {result['machine']['cores']} CPU cores; median of "
        f"{s['rounds']} rounds, measured alternately (quartiles).\n\n" + markdown_table(["backbone", *tasks], rows)
    )


def engines(result: Result) -> str:
    s, machine, results = result["settings"], result["machine"], result["results"]
    engine_names = dict.fromkeys(n for row in results.values() for n in row["rows"] if " " in n and n != "hook CAM")
    rows = []
    for name in ["hook CAM", *engine_names]:
        cells = [row["rows"].get(name) for row in results.values()]
        rows.append([name, *(f"{c['speedup']:.2f} ({_range(c['quartiles'], 2)})" if c else "-" for c in cells)])
    if all("gradcam" in row for row in results.values()):
        gradcam = [row["gradcam"] for row in results.values()]
        cells = [f"{g['eager']['speedup']:.0f}, {g['best']['speedup']:.0f}" for g in gradcam]
        rows.append(["over GradCAM with one call per class: eager torch, best engine", *cells])
    return (
        f"Speed relative to the eager float32 torch network: scores and class maps of {s['classes']} classes, batches "
        f"of {s['batch']}, {machine['threads']} threads of {machine['processor']}; median of {s['rounds']} rounds, "
        "measured alternately (quartiles).\n\n" + markdown_table(["", *results], rows)
    )


def cold_start(result: Result) -> str:
    s, r, machine = result["settings"], result["results"], result["machine"]
    rows = [[name, f"{median:.1f}", f"{low:.1f} to {high:.1f}"] for name, (low, median, high) in r["seconds"].items()]
    low, median, high = r["ratio"]
    return (
        f"Processor time of a new process, one thread of {machine['processor']} ({machine['flags']}): `wildcat predict "
        f"{s['model']}` of one image, and a forward pass of the same network alone; {s['pairs']} pairs, measured "
        f"alternately. Ratio {median:.2f} ({low:.2f} to {high:.2f}).\n\n"
        + markdown_table(["", "seconds, median", "quartiles"], rows)
    )


def engine_accuracy(result: Result) -> str:
    s = result["settings"]
    first = next(iter(result["results"].values()))
    rows = []
    for name, row in result["results"].items():
        cells = [f"{100 * row[k]:.2f} | {100 * (row[k] - first[k]):+.2f}" for k in ("map", "point_ap")]
        rows.append([name, *cells])
    return (
        f"{s['data']}, {s['images']} images of {s['split']}: {s['backbone']} at {s['image_size']} px on each engine; "
        f"int8 ranges from {s['calibration']} images of {s['calibration_split']}; AP over all recall points (voc10), "
        "point tolerance 18 px.\n\n" + markdown_table(["engine", "mAP %", "change", "point AP %", "change"], rows)
    )


def spatial_pool(result: Result) -> str:
    s, r = result["settings"], result["results"]
    time, memory = r["seconds ratio"], r["memory_mb ratio"]
    return (
        f"`spatial_pool` forward and backward on {' x '.join(map(str, s['shape']))} maps, k = {s['k']}, alpha = "
        f"{s['alpha']}: {time['median']:.2f} times faster than sorting every map ({time['lowest']:.2f} to "
        f"{time['highest']:.2f} over {s['rounds']} pairs of processes), with {memory['median']:.2f} times less memory "
        f"({memory['lowest']:.2f} to {memory['highest']:.2f})."
    )


def costs(result: Result) -> str:
    s, r = result["settings"], result["results"]
    lines = [f"{s['backbone']} at {s['size']} px, batches of {s['batch']}, torch:", ""]
    for name in ("forward pass", "training step"):
        shares = ", ".join(f"{group} {100 * share:.0f} %" for group, share in list(r[name].items())[:4])
        lines.append(f"- {name}: {shares};")
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in r["milliseconds per image"].items())
    lines.append(f"- one image of 500 x 375 from JPEG to result row, in milliseconds on one core: {stages}.")
    return "\n".join(lines)


def many_classes(result: Result) -> str:
    s, machine, exponent = result["settings"], result["machine"], result["results"]["exponent"]
    rows = []
    for number, row in result["results"]["rows"].items():
        each = 1e6 * row["epoch_s"] / int(number)
        rows.append([f"{int(number):,}", f"{row['epoch_s']:.1f}", f"{each:.0f}", f"{row['peak_mb']:.0f}"])
    return (
        f"An epoch of a head of {s['classes']:,} exclusive classes on rows of random features ({s['backbone']}, "
        f"batches of {s['batch_size']}, {machine['threads']} thread of {machine['processor']}): exponent of the growth "
        f"**{exponent:.2f}**. Memory is that of the whole process, which maps the rows from disk.\n\n"
        + markdown_table(["rows", "seconds", "microseconds per row", "peak memory, MB"], rows)
    )


def scaling(result: Result) -> str:
    s, machine = result["settings"], result["machine"]
    rows = [
        [
            name,
            ", ".join(map(str, row["settings"])),
            ", ".join(f"{seconds:.3f}" for seconds in row["seconds"]),
            f"{row['exponent']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
        ]
        for name, row in result["results"].items()
    ]
    return (
        f"Scores and class maps, {s['backbone']} on {s['device']}, {machine['threads']} threads of "
        f"{machine['processor']}; one setting varies, the others stay at 20 classes, M = 4, 224 px, batch 8. Exponent "
        f"of the growth (lowest and highest of {s['rounds']} rounds): 1 is linear, 0 is constant.\n\n"
        + markdown_table(["varied", "settings", "seconds", "exponent"], rows)
    )


def predict_throughput(result: Result) -> str:
    s, r = result["settings"], dict(result["results"])
    memory = r.pop("peak memory in MB")
    rows = []
    for name, row in r.items():
        rates = [f"{row['images per second'][key]['mean']:.1f}" for key in ("predict", "network")]
        rows.append([name, *rates, f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"])
    peaks = ", ".join(f"{megabytes:.0f} MB for {name}" for name, megabytes in memory.items() if name != "ratio")
    return (
        f"`wildcat predict` over {s['count']:,} JPEG files on disk, {', '.join(s['backbones'])}, against its network "
        f"alone on random tensors, images per second ({s['rounds']} rounds, measured alternately):\n\n"
        + markdown_table(["", "predict", "network", "ratio (lowest to highest)"], rows)
        + f"\n\nPeak memory of the process with a tiny network: {peaks} (ratio {memory['ratio']:.3f})."
    )


def crf(result: Result) -> str:
    s, r, machine = result["settings"], result["results"], result["machine"]
    names = {"wildcat_21": "21 classes", "wildcat_present": "the present classes only"}
    rows = []
    for run in r["time"]:
        for variant, name in names.items():
            cells = [_median(run[f"{variant}_over_pydensecrf_21"][clock]) for clock in ("cpu", "wall")]
            rows.append([run["threads"], name, f"{1000 * run[variant]['cpu_s']['median']:.0f} ms", *cells])
    equal = r["agreement"]["full_size_wildcat_equals_pydensecrf"]
    peaks = r["peak_memory_mib"]
    return (
        f"`dense_crf` against pydensecrf, which filters 21 classes on one thread; {s['data'].split(',')[1].strip()}, "
        f"default settings, {machine['processor']} ({machine['flags']}). Ratios are medians over images and rounds, "
        "measured alternately (quartiles); wall times count only while the machine was otherwise idle.\n\n"
        + markdown_table(
            ["threads", "wildcat", "processor time", "ratio of processor time", "ratio of wall time"], rows
        )
        + f"\n\nThe labels are equal at {100 * equal['mean']:.2f} % of the pixels of {r['agreement']['images']} images "
        f"(at least {100 * equal['worst']:.2f} % of each). Peak memory: pydensecrf {peaks['pydensecrf_21']} MiB, "
        f"wildcat {peaks['wildcat_21']} MiB with 21 classes, {peaks['wildcat_present']} MiB with those present."
    )


def serve_load(result: Result) -> str:
    s, r = result["settings"], result["results"]
    service, crowd, memory, broken = r["service"], r["crowd"], r["memory_mb"], r["broken"]
    each = r["memory_per_process_mb"]
    early, late = s["requests"].split(",")
    refused = sum(count for status, count in crowd["statuses"].items() if status == "503")
    ratios = r["ratio"]["values"]
    return (
        f"`wildcat serve`, {s['backbone']} at {s['input_size']} px, {s['classes']} classes, images of {s['width']} x "
        f"{s['height']}, {s['clients']} clients on the same {result['machine']['cores']} cores for {s['seconds']:g} s "
        f"in {s['rounds']} rounds: {service['per_s']['mean']:.1f} images per second, "
        f"**{statistics.median(ratios):.2f}** of the bare network in batches of {s['batch']} "
        f"(median; {min(ratios):.2f} to {max(ratios):.2f}), measured alternately at {r['bare']['per_s']['mean']:.1f}; "
        f"latency {service['latency_p50_s']['mean']:.2f} s (median), {service['latency_p95_s']['mean']:.2f} s "
        f"(95th percentile). With {crowd['clients']} clients {crowd['per_s']:.1f} per second; {refused:,} requests "
        f"were refused with 503. Memory {memory[early]:.0f} MB after {int(early):,} requests, {memory[late]:.0f} MB "
        f"after {int(late):,}: {each['mean']:.0f} MB for each of {len(each['values'])} processes. From the command to "
        f"the first answer it takes {r['start_s']['mean']:.1f} s. Of {broken['bodies']} malformed bodies "
        f"{broken['answered_4xx']} got a 4xx response, "
        f"and the service {'stayed up' if broken['alive_after'] else 'died'}."
    )


def head_training(result: Result) -> str:
    s, r = result["settings"], result["results"]
    count = r["images"]
    seconds, ratio = ({name: row["mean"] for name, row in r[key].items()} for key in ("seconds", "ratio"))
    stages = ", ".join(f"{name} {taken:.1f}" for name, taken in r["profile"].items())
    val = {name: f"{percent(row['map'])} / {percent(row['point_ap'])}" for name, row in r["val"].items()}
    amp = "This processor has no bf16 instructions"
    if "command --amp" in val:
        amp = (
            f"With `--amp`, which runs the frozen backbone in bfloat16, {seconds['command --amp']:.0f} s: "
            f"{ratio['command --amp / forward']:.2f} times the same pass "
            f"({ratio['command --amp / forward bf16']:.2f} times a pass in bfloat16, {seconds['forward bf16']:.0f} s), "
            f"and {val['command --amp']}"
        )
    return (
        f"`wildcat train --tune head`, {s['backbone']} at {s['image_size']} px, {s['epochs']} epochs, {count['train']} "
        f"training and {count['val']} validation images: {seconds['command']:.0f} s from the command to a trained "
        f"model, {ratio['command / forward']:.2f} times one forward pass of the backbone over the same images as "
        f"tensors ({seconds['forward']:.0f} s; {ratio['command / folded']:.2f} times a pass with folded batch "
        f"normalisation, as the feature cache uses); mAP / point AP on val {val['command']}. {amp}. Seconds per stage "
        f"in one process, without `--amp`: {stages}."
    )


def train_throughput(result: Result) -> str:
    s, machine = result["settings"], result["machine"]
    rows = []
    for name, row in result["results"].items():
        rates = row["images per second"]
        for bare, ratio in row["ratio"].items():
            values = (rates["training"], rates[bare], ratio)
            cells = [f"{v['median']:.2f} ({v['lower']:.2f} to {v['upper']:.2f})" for v in values]
            rows.append([name, bare, *cells])
    return (
        f"`wildcat train --tune all` from JPEG files, {s['backbone']} at {s['image_size']} px, batch "
        f"{s['batch_size']}, against forward, backward and SGD of its backbone alone in float32 on random tensors; "
        f"images per second of {s['clock']} time on {machine['threads']} thread{'s' * (machine['threads'] > 1)} of "
        f"{machine['processor']}, median of steps in turn (quartiles).\n\n"
        + markdown_table(["training", "against", "images/s", "images/s of the bare backbone", "ratio"], rows)
    )


def torchrun_train(result: Result) -> str:
    rows = []
    for name, training in result["results"].items():
        for size, row in training["processes"].items():
            difference = row["difference"]
            rate = f"{row['images_per_second']['mean']:.1f}"
            rows.append([name, size, rate, f"{difference['weights']:.1e}", f"{difference['val_metric']:.1e}"])
    columns = ["", "processes", "images per second", "difference of the weights", "difference of the val metric"]
    return (
        f"Under torchrun on the same {result['settings']['cores']} cores; differences against one process.\n\n"
        + markdown_table(columns, rows)
    )


def ray_predict(result: Result) -> str:
    s, r = result["settings"], result["results"]
    rates = ", ".join(f"{name} {row['mean']:.1f}" for name, row in r["images a second"].items())
    return (
        f"`--engine ray` with {s['workers']} workers against one process on the same {s['cores']} cores, images per "
        f"second: {rates}; ratio {r['ratio']:.2f}, {r['seconds to start']:.1f} s to start."
    )


def _median(summary: dict[str, Any]) -> str:
    return f"{summary['median']:.2f} ({_range(summary['quartiles'], 2)})" if summary["samples"] else "not measured"


def _range(quartiles: list[float], digits: int) -> str:
    return f"{quartiles[0]:.{digits}f} to {quartiles[1]:.{digits}f}"
