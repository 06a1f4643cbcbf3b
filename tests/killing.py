"""Kill commands at random moments: `kill_commands(jobs, folder)`.

The commands are forked from a process that has imported torch but not used it, so each starts in milliseconds. Kills
alternate between three kinds: after a random time; before a random operation on a file; and in the middle of a write,
when a file grows beyond a random size.
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

# Audit events of Python that precede an operation on a file; of `open` only those for writing.
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "shutil.copyfile"}


@dataclass
class Job:
    """A command to kill.

    Attributes:
        line: arguments of `wildcat`; "{n}" becomes the number of the target.
        target: the file or folder that it writes, relative to the working folder; "{n}" likewise. Target 0 is written
            without kills.
        kills: how many kills there shall be.
        resume: after a kill, start the command again on the same target until it completes. Otherwise, move what the
            kill left of the target to `left-<name>-<attempt>` and start afresh.
        keep: a file of the target that is a copy of the file `before` at each start.
        forget: a folder to remove before each new target.
        seed: of the random moments.
    """

    name: str
    line: list[str]
    target: str
    kills: int
    resume: bool = False
    keep: str = ""
    forget: str = ""
    seed: int = 0


@dataclass
class Killed:
    """The outcome of a job.

    Attributes:
        kills: how many there were.
        started: after how many of them the target existed.
        targets: how many targets are complete.
        operations: operations on files in a command that is not killed.
        lefts: copies of the target after each attempt, without `resume`.
    """

    name: str
    kills: int = 0
    started: int = 0
    targets: int = 0
    operations: int = 0
    lefts: list[str] = field(default_factory=list)


def kill_commands(jobs: list[Job], folder: Path, timeout: float) -> list[Killed]:
    """Run jobs in a subprocess whose working folder is `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing"],
        input=json.dumps([asdict(job) for job in jobs]),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [Killed(**values) for values in json.loads(done.stdout.splitlines()[-1])]


def soak_kills(name: str, default: int) -> int:
    """How many kills a test makes: `make soak` sets more in the environment."""
    return int(os.environ.get(f"WILDCAT_SOAK_{name}", str(default)))


def record(name: str, **counts: object) -> None:
    """Append the counts of a test that passed to the file `WILDCAT_SOAK_RECORD`, for benchmarks/soak.py."""
    if path := os.environ.get("WILDCAT_SOAK_RECORD"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"test": name, **counts}) + "\n")


# --- in the subprocess ------------------------------------------------------------------------------------------------


def count_operations(folder: str, kill_at: int) -> list[int]:
    """Kill this process before its operation `kill_at` on a file in `folder`; 0: only count them."""
    count = [0]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in OPERATIONS or not str(Path(folder, str(arguments[0]))).startswith(folder):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        count[0] += 1
        if count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def kill_when_writing(size: int) -> None:
    """Let the system kill this process in the middle of the write that takes a file beyond `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def fork_command(line: list[str], kill_at: int = 0, size: int = 0) -> int:
    """Fork a process that runs a command and, if it completes, writes the count of its operations to `operations`."""
    import wildcat.cli

    child = os.fork()
    if child == 0:
        with Path("output").open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        count = count_operations(str(Path.cwd()), kill_at)
        if size:
            kill_when_writing(size)
        code = 1
        try:
            code = wildcat.cli.main(line)
            taken = count[0]
            Path("operations").write_text(str(taken))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def wait(child: int) -> bool:
    """Whether a command was killed; it must not fail."""
    status = os.waitpid(child, 0)[1]
    if status and not os.WIFSIGNALED(status):
        raise SystemExit(f"{os.waitstatus_to_exitcode(status)}: {Path('output').read_text()[-3000:]}")
    return os.WIFSIGNALED(status)


def run_job(job: Job) -> Killed:
    """Run the command once without kills, then with kills until there are enough, then to its end."""
    moments, done = random.Random(job.seed), Killed(job.name)

    def target() -> Path:
        return Path(job.target.replace("{n}", str(done.targets)))

    def start(kill_at: int = 0, size: int = 0) -> int:
        if job.keep:
            shutil.copyfile("before", target() / job.keep)
        elif not job.resume:
            remove(target())
        return fork_command([word.replace("{n}", str(done.targets)) for word in job.line], kill_at, size)

    def next_target() -> None:
        done.targets += job.resume
        if job.forget:
            remove(Path(job.forget))

    began = time.monotonic()
    assert not wait(start())
    seconds, done.operations = time.monotonic() - began, int(Path("operations").read_text())
    largest = max(path.stat().st_size for path in (target(), *target().rglob("*")) if path.is_file())
    next_target()
    for attempt in range(20 * job.kills):
        if done.kills == job.kills:
            break
        if attempt % 3 == 0:  # in the middle of writing the largest file
            child = start(size=largest - moments.randint(1, largest // 2))
        elif attempt % 3 == 1:
            child = start(kill_at=moments.randint(1, done.operations))
        else:
            child = start()
            time.sleep(moments.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        killed = wait(child)
        done.kills += killed
        done.started += killed and target().exists()
        if not job.resume:
            done.lefts.append(f"left-{job.name}-{attempt}")
            copy(target(), Path(done.lefts[-1]))
        elif not killed:
            next_target()
    assert not wait(start())
    done.targets += 1
    return done


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def copy(path: Path, to: Path) -> None:
    """Copy a file or a folder, if there is one."""
    if path.is_dir():
        shutil.copytree(path, to)
    elif path.exists():
        shutil.copyfile(path, to)


if __name__ == "__main__":
    # Import what commands import late, so that a forked command need not. Nothing of it may run here: threads of this
    # process would not exist in the commands.
    import wildcat.cli.predict
    import wildcat.export.predictions
    import wildcat.scale.shards  # noqa: F401

    print(json.dumps([asdict(run_job(Job(**values))) for values in json.load(sys.stdin)]))
