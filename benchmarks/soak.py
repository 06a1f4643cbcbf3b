"""Kill prediction, training and every command that writes, hundreds of times, and check what is left.

    python benchmarks/soak.py --out benchmarks/results/soak.json    # or: make soak

Runs the tests with "killed" in their names with more kills: SIGKILL after a random time, before a random operation on
a file, or in the middle of a write. A resumed prediction has one row per image and the bytes of one without kills; a
training ends with the same weights, optimiser state, random numbers and history; any other command leaves either the
old or the new content. The result holds what the tests counted; if a test fails there is none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from script import argument_parser, save_result, settings_of

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--kills", type=int, default=300, help="of prediction in shards")
    parser.add_argument("--ray-kills", type=int, default=10, help="of prediction with Ray")
    parser.add_argument("--training-kills", type=int, default=50, help="half of them while features are cached")
    parser.add_argument("--command-kills", type=int, default=30, help="of each other command")
    arguments = parser.parse_args()
    settings, began = settings_of(arguments), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        counts = Path(name) / "counts"
        kills = {f"WILDCAT_SOAK_{key.upper()}": str(value) for key, value in settings.items()}
        environment = {**os.environ, **kills, "WILDCAT_SOAK_RECORD": str(counts)}
        tests = [sys.executable, "-m", "pytest", "-k", "killed", "--timeout=0"]
        if code := subprocess.run(tests, cwd=REPOSITORY, env=environment, check=False).returncode:
            raise SystemExit(code)
        rows = [json.loads(line) for line in counts.read_text(encoding="utf-8").splitlines()]
    results = {"minutes": round((time.monotonic() - began) / 60, 1), **{row.pop("test"): row for row in rows}}
    save_result(arguments, settings, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
