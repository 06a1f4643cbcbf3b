"""Load test of the service: throughput relative to the bare network, latency, memory, and malformed requests.

    python benchmarks/serve_load.py --out benchmarks/results/serve-load.json

Clients in this process send the same JPEG to `wildcat serve`, each as soon as its last response has arrived; they use
the same cores as the service. Between the rounds another process runs the bare network on batches of tensors: the
ratio of a round is relative to the mean of the runs before and after it. `cpu_s` is the processor time per image,
which depends less on other load of the machine. Memory is that of all processes of the service. A start is the time
from the command to its first answer, with the imported files in the system's cache. The malformed bodies are those of
the tests (extra `test`), sent to a second service with small limits.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image
from script import write_result

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import Limits, TrainConfig
from wildcat.data import write_shapes
from wildcat.data.readers.voc import read_voc
from wildcat.models.run import create_run
from wildcat.reproduce.tables import spread
from wildcat.train.loop import train

ROOT = Path(__file__).resolve().parent.parent
SMALL = 50  # MB; smaller processes are helpers of Python's multiprocessing
FORM = "multipart/form-data; boundary=xyz"


def bare(run: str, batch: int, seconds: float) -> None:
    """For each line on stdin, run the network for `seconds`; print images per second and CPU seconds per image."""
    predictor = wildcat.load(run, "cpu")
    size = predictor.preprocess.size
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        predictor.forward([images], modalities=False)
    for _ in sys.stdin:
        start, cpu, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            predictor.forward([images], modalities=False)
            done += batch
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(json.dumps({"per_s": round(done / elapsed, 2), "cpu_s": round(cpu / done, 4)}), flush=True)


@contextlib.contextmanager
def bare_network(run: str, batch: int, seconds: float) -> Iterator[Callable[[], dict[str, float]]]:
    """A function that runs `bare` once, in another process."""
    command = [sys.executable, __file__, "--bare", "--run", run, "--batch", str(batch), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        requests, results = process.stdin, process.stdout

        def measure() -> dict[str, float]:
            print(file=requests, flush=True)
            result: dict[str, float] = json.loads(results.readline())
            return result

        measure()  # loads the model
        yield measure


@dataclass
class Service:
    """A running `wildcat serve`."""

    process: subprocess.Popen[str]
    host: str
    port: int

    def processes(self) -> list[Path]:
        """Folders under /proc of the service and its descendants."""
        pids = [self.process.pid]
        for pid in pids:
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return [Path(f"/proc/{pid}") for pid in pids]

    def memory(self) -> list[float]:
        """Memory of each process in MB; of shared pages a share (PSS), so that the sum counts them once."""
        texts = [(p / "smaps_rollup").read_text() for p in self.processes()]
        found = [next(line for line in text.splitlines() if line.startswith("Pss:")) for text in texts]
        return [int(line.split()[1]) / 1024 for line in found]

    def cpu_seconds(self) -> float:
        """CPU seconds of all processes so far."""
        fields = [(p / "stat").read_text().rpartition(")")[2].split() for p in self.processes()]
        return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=120)


@contextlib.contextmanager
def serving(run: str, *flags: str) -> Iterator[Service]:
    """A service on a free port, in another process."""
    command = [sys.executable, "-m", "wildcat", "serve", run, "--port", "0", "--device", "cpu", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().strip())
        service = Service(process, address.hostname or "", address.port or 0)
        with contextlib.closing(service.connect()) as connection:
            connection.request("GET", "/health")
            assert connection.getresponse().read()
        yield service
    finally:
        process.terminate()
        process.wait(30)


def start_seconds(run: str, body: bytes) -> float:
    """From the command to its first answer."""
    start = time.perf_counter()
    with serving(run) as service, contextlib.closing(service.connect()) as connection:
        assert post(connection, body) == 200
        return round(time.perf_counter() - start, 3)


def post(connection: http.client.HTTPConnection, body: bytes, kind: str = FORM) -> int:
    """Post, read the response, return its status."""
    connection.request("POST", "/predict", body, {"Content-Type": kind})
    response = connection.getresponse()
    response.read()
    return response.status


def load(service: Service, body: bytes, clients: int, more: Callable[[], bool]) -> dict[str, Any]:
    """Send requests from `clients` threads without pauses while `more()`; latency counts successful requests only."""
    statuses: Counter[int] = Counter()
    latencies: list[float] = []

    def client() -> None:
        with contextlib.closing(service.connect()) as connection:
            while more():
                start = time.perf_counter()
                status = post(connection, body)
                statuses[status] += 1
                if status == 200:
                    latencies.append(time.perf_counter() - start)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start, cpu = time.perf_counter(), service.cpu_seconds()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed, cpu = time.perf_counter() - start, service.cpu_seconds() - cpu
    return {
        "seconds": round(elapsed, 2),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "per_s": round(statuses[200] / elapsed, 2),
        "cpu_s": round(cpu / statuses[200], 4),
        "latency_p50_s": round(statistics.median(latencies), 4),
        "latency_p95_s": round(float(np.quantile(latencies, 0.95)), 4),
    }


def for_seconds(seconds: float) -> Callable[[], bool]:
    until = time.perf_counter() + seconds
    return lambda: time.perf_counter() < until


def times(count: int) -> Callable[[], bool]:
    """True `count` times over all threads."""
    calls = itertools.count()
    return lambda: next(calls) < count


def malformed_requests(service: Service, good: bytes) -> dict[str, Any]:
    """Send every malformed body of the tests; the service must refuse them and survive."""
    sys.path.insert(0, str(ROOT))
    from tests.serve.malformed import bad_types, malformed_bodies  # noqa: PLC0415  # needs the path above

    requests = [(body, FORM) for _, body in malformed_bodies()] + [(good, kind) for _, kind in bad_types()]
    statuses: Counter[int] = Counter()
    for body, kind in requests:
        with contextlib.closing(service.connect()) as connection:
            statuses[post(connection, body, kind)] += 1
    with contextlib.closing(service.connect()) as connection:
        alive = post(connection, good) == 200 and service.process.poll() is None
    return {
        "bodies": len(requests),
        "answered_4xx": sum(count for status, count in statuses.items() if 400 <= status < 500),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "alive_after": alive,
    }


def short_run(folder: Path, size: int) -> str:
    """A run with the default backbone of `wildcat train`, lite0, trained for one epoch on 16 images."""
    data = read_voc(write_shapes(folder / "shapes", train=16, val=0))
    config = TrainConfig(tune="head", image_size=size, epochs=1, val_split="none")
    run = create_run(folder / f"lite0-{size}", config, data)
    train(run, data)
    return str(run.folder)


def jpeg_form(width: int, height: int) -> bytes:
    """A form with a JPEG of smooth noise, which compresses like a photograph."""
    small = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    head = b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    return head + buffer.getvalue() + b"\r\n--xyz--\r\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="model folder or packaged model; default: lite0 with 5 classes")
    parser.add_argument("--image-size", type=int, default=320, help="of the default model, in pixels")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30, help="of load, over all rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=Limits().batch_size, help="of the service and of the bare network")
    parser.add_argument("--width", type=int, default=320, help="of the image in pixels")
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--requests", default="500,5000", help="numbers of requests after which memory is measured")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.bare:
        keep_freed_memory()  # as the CLI does
        bare(arguments.run, arguments.batch, arguments.seconds)
        return
    if arguments.out is None:
        parser.error("--out is needed")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WILDCAT_CACHE"] = folder
        arguments.run = arguments.run or short_run(Path(folder), arguments.image_size)
        settings, results = measure(arguments)
    flags = shlex.join(
        Path(word).name for word in sys.argv[1:]
    )  # names of the run and the result without their folders
    write_result(arguments.out, f"python benchmarks/serve_load.py {flags}", settings, results)


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and results."""
    body = jpeg_form(arguments.width, arguments.height)
    first, second = (int(n) for n in arguments.requests.split(","))
    each = arguments.seconds / arguments.rounds
    with (
        bare_network(arguments.run, arguments.batch, each) as alone,
        serving(arguments.run, "--batch-size", str(arguments.batch)) as service,
    ):
        load(service, body, arguments.clients, times(8 * arguments.batch))  # warm up
        networks, services = [alone()], []
        for _ in range(arguments.rounds):
            services.append(load(service, body, arguments.clients, for_seconds(each)))
            networks.append(alone())
            print(services[-1], networks[-1], file=sys.stderr)
        overload = load(service, body, 4 * arguments.clients, for_seconds(arguments.seconds / 3))
    ratios = [
        under_load["per_s"] / statistics.mean((before["per_s"], after["per_s"]))
        for under_load, before, after in zip(services, networks[:-1], networks[1:], strict=True)
    ]
    print(f"ratios {ratios}", f"overload {overload}", sep="\n", file=sys.stderr)
    starts = [start_seconds(arguments.run, body) for _ in range(3)]
    print(f"starts {starts}", file=sys.stderr)
    with serving(arguments.run, "--batch-size", str(arguments.batch)) as service:
        load(service, body, arguments.clients, times(first))
        early = sum(service.memory())
        load(service, body, arguments.clients, times(second - first))
        memory = service.memory()
        late = sum(memory)
    print(f"memory {early:.0f} MB -> {late:.0f} MB", file=sys.stderr)
    with serving(arguments.run, "--max-mb", "0.2", "--max-pixels", "100000") as service:
        malformed = malformed_requests(service, jpeg_form(160, 120))
    print(malformed, file=sys.stderr)
    results = {
        "bare": {name: spread([each[name] for each in networks]) for name in networks[0]},
        "service": {name: spread([each[name] for each in services]) for name in services[0] if name != "statuses"},
        "statuses": dict(sum((Counter(each["statuses"]) for each in services), Counter())),
        "ratio": spread(ratios),
        "crowd": {"clients": 4 * arguments.clients, **overload},
        "start_s": spread(starts),
        "memory_mb": {str(first): round(early, 1), str(second): round(late, 1), "growth": round(late - early, 1)},
        "memory_per_process_mb": spread([mb for mb in memory if mb > SMALL]),
        "broken": malformed,
    }
    settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "bare", "image_size")}
    predictor = wildcat.load(arguments.run, "cpu")
    settings |= {"run": Path(arguments.run).name, "classes": len(predictor.classes)}
    settings |= {"backbone": predictor.model.backbone.name, "input_size": predictor.preprocess.size}
    return settings, results


if __name__ == "__main__":
    main()
