"""Commands that are killed: forked from a process that has imported torch and used nothing of it, in milliseconds.

    python -m tests.killing < a JSON list of `Job` fields

A job's command is started again and again and killed, in turn after a random time, which hits whatever it does then;
before a random one of its operations on files, which hits the short moments between two of them; and in the middle of
writing a file, where that grows beyond a random size. What it has left of its `target` is kept, for a test to look at.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "shutil.copyfile"}
"""Audit events of Python that precede an operation on a file; of `open` those for writing."""


@dataclass
class Job:
    """A command to kill.

    Attributes:
        line: `wildcat ...`; "{n}" in it becomes the number of the target.
        target: the file or folder it makes, below the working folder; "{n}" likewise.
        kills: how many kills are wanted.
        goes_on: the same target is taken up after a kill, until it is complete; otherwise what is left of it after a
            kill is moved to `left-<kill>`, and made anew.
        keep: a file of the target that is there before each start, a copy of `before`.
        forget: a folder that is removed before another target is begun.
        seed: of the moments.
    """

    name: str
    line: list[str]
    target: str
    kills: int
    goes_on: bool = False
    keep: str = ""
    forget: str = ""
    seed: int = 0


@dataclass
class Killed:
    """What came of a job.

    Attributes:
        kills: how many there were.
        begun: after how many of them something of the target was there.
        targets: how many targets were completed.
        operations: operations on files in a command that is left alone.
    """

    name: str
    kills: int = 0
    begun: int = 0
    targets: int = 0
    operations: int = 0
    lefts: list[str] = field(default_factory=list)


def kill_commands(jobs: list[Job], folder: Path, timeout: float) -> list[Killed]:
    """Run jobs in a process of their own, in `folder`."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.killing"],
        input=json.dumps([asdict(job) for job in jobs]),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    return [Killed(**values) for values in json.loads(told.stdout.splitlines()[-1])]


def watch(place: str, count: int) -> list[int]:
    """Kill this process before its operation `count` on a file below `place`; 0: never. The operations so far."""
    seen = [0]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in OPERATIONS or not str(Path(place, str(arguments[0]))).startswith(place):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        seen[0] += 1
        if seen[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def die_writing(size: int) -> None:
    """Let the system kill this process in the middle of the write that takes a file beyond `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def start(line: list[str], count: int = 0, size: int = 0) -> int:
    """Fork a process that runs a command; it says in `operations` how many it took, where it comes to its end."""
    import wildcat.cli

    child = os.fork()
    if child == 0:
        with Path("output").open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        seen = watch(str(Path.cwd()), count)
        if size:
            die_writing(size)
        code = 1
        try:
            code = wildcat.cli.main(line)
            taken = seen[0]
            Path("operations").write_text(str(taken))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def finish(child: int) -> None:
    """Wait for a command that is to succeed."""
    status = os.waitpid(child, 0)[1]
    if status:
        raise SystemExit(f"{os.waitstatus_to_exitcode(status)}: {Path('output').read_text()[-3000:]}")


def kill_job(job: Job) -> Killed:
    """Do one job: an undisturbed command first, target 0, then kills until there are enough."""
    moments, done = random.Random(job.seed), Killed(job.name)

    def line() -> list[str]:
        return [word.replace("{n}", str(done.targets)) for word in job.line]

    def target() -> Path:
        return Path(job.target.replace("{n}", str(done.targets)))

    def prepare() -> None:
        if job.keep:
            shutil.copyfile("before", target() / job.keep)
        elif not job.goes_on:
            shutil.rmtree(target()) if target().is_dir() else target().unlink(missing_ok=True)

    def forget() -> None:
        if job.forget:
            shutil.rmtree(job.forget, ignore_errors=True)

    prepare()
    begun = time.monotonic()
    finish(start(line()))
    span, operations = time.monotonic() - begun, int(Path("operations").read_text())
    largest = max(p.stat().st_size for p in (target(), *target().rglob("*")) if p.is_file())
    forget()
    done.operations, done.targets = operations, int(job.goes_on)
    for attempt in range(20 * job.kills):
        if done.kills == job.kills:
            break
        prepare()
        count = moments.randint(1, operations) if attempt % 3 == 1 else 0
        size = (
            largest - moments.randint(1, largest // 2) if attempt % 3 == 0 else 0
        )  # of the largest file, in its middle
        child = start(line(), count, size)
        if not count and not size:
            time.sleep(moments.uniform(0, span))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            done.kills += 1
            done.begun += target().exists()
        elif status:
            raise SystemExit(f"{os.waitstatus_to_exitcode(status)}: {Path('output').read_text()[-3000:]}")
        if not os.WIFSIGNALED(status) and job.goes_on:
            done.targets += 1
            forget()
        elif not job.goes_on:
            left = Path(f"left-{job.name}-{attempt}")
            if target().is_dir():
                shutil.copytree(target(), left)
            elif target().exists():
                shutil.copyfile(target(), left)
            done.lefts.append(str(left))
    prepare()
    finish(start(line()))
    done.targets += 1
    return done


def soak_kills(name: str, usual: int) -> int:
    """How many kills a test does: as `make soak` says in the environment, or as usual."""
    return int(os.environ.get(f"WILDCAT_SOAK_{name}", str(usual)))


def record(name: str, **figures: object) -> None:
    """Append the figures of a test that has passed to the file `WILDCAT_SOAK_RECORD` names, for benchmarks/soak.py."""
    if path := os.environ.get("WILDCAT_SOAK_RECORD"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"test": name, **figures}) + "\n")


if __name__ == "__main__":
    # All that commands import late, so that a child need not; nothing of it is used here, or threads would not survive.
    from wildcat.scale import shards, worker  # noqa: F401

    print(json.dumps([asdict(kill_job(Job(**values))) for values in json.load(sys.stdin)]))
