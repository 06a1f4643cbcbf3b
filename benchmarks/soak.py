"""Kills prediction, training and every command that writes, hundreds of times, and looks at what is left.

    python benchmarks/soak.py --out benchmarks/results/soak.json    # or: make soak

These are the tests of `make test` with "killed" in their names, with more kills: SIGKILL after a random time and before
a random operation on files. A prediction that is gone on with has each row once and the bytes of one left alone; a
training ends with the weights, optimiser, random numbers and history of one left alone; other commands leave what was
there before or the new, whole. The figures are what the tests counted; where one fails there is no result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wildcat.reproduce.record import write_result

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="of prediction in parts")
    parser.add_argument("--training-kills", type=int, default=50, help="half of them while features are cached")
    parser.add_argument("--command-kills", type=int, default=30, help="of each other command")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        told = Path(name) / "record"
        environment = {
            **os.environ,
            "WILDCAT_SOAK_RECORD": str(told),
            "WILDCAT_SOAK_KILLS": str(arguments.kills),
            "WILDCAT_SOAK_TRAINING_KILLS": str(arguments.training_kills),
            "WILDCAT_SOAK_COMMAND_KILLS": str(arguments.command_kills),
        }
        tests = [sys.executable, "-m", "pytest", "-k", "killed", "--ignore", "tests/bulk/test_rays.py"]
        code = subprocess.run(tests, cwd=REPOSITORY, env=environment, check=False).returncode
        if code:
            raise SystemExit(code)
        rows = [json.loads(line) for line in told.read_text(encoding="utf-8").splitlines()]
    results = {"minutes": round((time.monotonic() - begun) / 60, 1), **{row.pop("test"): row for row in rows}}
    settings = {k: v for k, v in vars(arguments).items() if k != "out"}
    write_result(arguments.out, f"python benchmarks/soak.py --out {arguments.out.name}", settings, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
