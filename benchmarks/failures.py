"""What failures and slow machines cost prediction in parts: the policy of `wildcat.scale.scheduler`, in simulated time.

    python benchmarks/failures.py --out benchmarks/results/failures.json

The loop that hands parts to Ray's workers runs as it is, over workers that are made up: each has a speed of its own,
some are slow, they die at random and take a while to come back, and some images kill whoever reads them, except with
care. Nothing is predicted and nothing waits; time is a number. A scenario is run with several seeds.

overhead   worker-hours paid over those the images need at nominal speed
tail       from when the last part was handed out to the end, over the time of a part at nominal speed
finished   whether every part came to its end, each once
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from wildcat.cli.predict_sharded import PART_ROWS
from wildcat.data.image_ref import ImageLocation
from wildcat.errors import RunError, WildcatError
from wildcat.reproduce.record import write_result
from wildcat.scale import scheduler as crew
from wildcat.scale.scheduler import Died, make_parts
from wildcat.scale.shards import Done, Part


@dataclass(frozen=True)
class World:
    """What machines and images are like.

    Attributes:
        parts, rows: how many, and images in each.
        workers: how many.
        seconds: an image takes, at nominal speed.
        spread: of the workers' speeds, as the standard deviation of their logarithm.
        slow, slowdown: share of workers that are slow, and how many times.
        deaths: of a worker, an hour.
        restart: seconds until a dead worker is back with its network loaded.
        poison: probability that an image kills the process that reads it.
        careful: how many times longer a part takes with care.
        lost: share of finished parts whose files are lost and made again by --resume.
    """

    parts: int = 20_000
    rows: int = PART_ROWS
    workers: int = 200
    seconds: float = 0.03
    spread: float = 0.1
    slow: float = 0.0
    slowdown: float = 5.0
    deaths: float = 0.0
    restart: float = 60.0
    poison: float = 0.0
    careful: float = 2.0
    lost: float = 0.0


SCENARIOS = {
    "nothing fails": World(),
    "2 % of workers five times slower": World(slow=0.02),
    "a death in a worker's day": World(deaths=1 / 24),
    "a death in a worker's hour": World(deaths=1.0),
    "ten deaths in a worker's hour": World(deaths=10.0),
    "one poison image in a million": World(poison=1e-6),
    "one poison image in ten thousand": World(poison=1e-4),
    "1 % of parts lost": World(lost=0.01),
    "all of these": World(slow=0.02, deaths=1.0, poison=1e-6, lost=0.01),
}
"""Names in the table, and their worlds."""


@dataclass
class Simulated:
    """Workers of a `World`, a `wildcat.scale.scheduler.Crew` whose clock jumps from event to event."""

    world: World
    chance: random.Random
    now: float = 0.0
    deaths: int = 0
    events: list[tuple[float, int]] = field(default_factory=list)
    ends: dict[int, Done | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tickets = 0
        self.ready = [0.0] * self.world.workers
        self.speeds = [self.speed() for _ in range(self.world.workers)]

    @property
    def size(self) -> int:
        return self.world.workers

    def speed(self) -> float:
        """Of a machine: seconds an image."""
        slow = self.world.slowdown if self.chance.random() < self.world.slow else 1.0
        return self.world.seconds * slow * self.chance.lognormvariate(0, self.world.spread)

    def give(self, worker: int, part: Part, careful: bool) -> int:
        world, rows = self.world, len(part.images)
        poisoned = [i for i, image in enumerate(part.images) if image.error] if world.poison else []
        pace = self.speeds[worker] * (world.careful if careful else 1.0)
        begun = max(self.now, self.ready[worker])
        end, done = begun + rows * pace, True
        if poisoned and not careful:
            end, done = begun + (poisoned[0] + 1) * pace, False
        if world.deaths and begun + (life := self.chance.expovariate(world.deaths / 3600)) < end:
            end, done = begun + life, False
        self.tickets += 1
        self.ends[self.tickets] = Done(part.number, rows, len(poisoned), "") if done else None
        heapq.heappush(self.events, (end, self.tickets))
        return self.tickets

    def wait(self, _: list[Any]) -> int:
        self.now, ticket = heapq.heappop(self.events)
        return ticket

    def result(self, ticket: int) -> Done | WildcatError:
        done = self.ends.pop(ticket)
        if done is None:
            self.deaths += 1
            raise Died("its process ended")
        return done

    def replace(self, worker: int) -> None:
        self.ready[worker] = self.now + self.world.restart


def listed(world: World, numbers: list[int], seed: int) -> Iterator[Part]:
    """Parts of these numbers; an image that kills has a fault, which follows from the part and the seed alone."""
    good = ImageLocation("image")
    for number in numbers:
        images = [good] * world.rows
        chance = random.Random(f"{seed} {number}")
        place = int(chance.expovariate(world.poison)) if world.poison else world.rows
        while place < world.rows:
            images[place] = ImageLocation("poison", error="kills its reader")
            place += 1 + int(chance.expovariate(world.poison))
        yield Part(number, number * world.rows, images)


def simulate(world: World, seed: int) -> dict[str, Any]:
    """One run of a world, with a second command where parts were lost."""
    chance = random.Random(seed)
    made: Counter[int] = Counter()
    wanted, hours, tail, failed, stops = list(range(world.parts)), 0.0, 0.0, 0, 0
    deaths, lost = 0, False
    while wanted and stops < 50:
        workers = Simulated(world, chance)
        handed_out = [0.0]

        def watched(
            parts: Iterator[Part], clock: Simulated = workers, last: list[float] = handed_out
        ) -> Iterator[Part]:
            for part in parts:
                last[0] = clock.now
                yield part

        try:
            for done in make_parts(workers, watched(listed(world, wanted, seed))):
                made[done.part] += 1
                failed += done.failed
        except RunError:
            stops += 1
        hours += workers.now * world.workers / 3600
        tail, deaths = max(tail, workers.now - handed_out[0]), deaths + workers.deaths
        wanted = [number for number in wanted if not made[number]]
        if not wanted and world.lost and not lost:
            lost = True
            wanted = [number for number in range(world.parts) if chance.random() < world.lost]
            for number in wanted:
                made[number] = 0
    needed = world.parts * world.rows * world.seconds / 3600
    return {
        "finished": sum(made.values()) == world.parts == len(made) and set(made.values()) == {1},
        "overhead": hours / needed - 1,
        "tail": tail / (world.rows * world.seconds),
        "deaths": deaths,
        "commands that stopped": stops,
        "images that killed": failed,
    }


def summary(world: World, seeds: int) -> dict[str, Any]:
    """Medians over seeds, and how many of them finished."""
    runs = [simulate(world, seed) for seed in range(seeds)]
    medians = {k: round(statistics.median(r[k] for r in runs), 4) for k in runs[0] if k != "finished"}
    return {"finished": f"{sum(r['finished'] for r in runs)} of {seeds}", **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, deerror=3)
    parser.add_argument("--parts", type=int, deerror=World.parts)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name, world in SCENARIOS.items():
        results[name] = summary(replace(world, parts=arguments.parts), arguments.seeds)
        print(name, json.dumps(results[name]), flush=True)
    settings = {"seeds": arguments.seeds, "retries": crew.RETRIES, "world": asdict(World(parts=arguments.parts))}
    write_result(arguments.out, f"python benchmarks/failures.py --out {arguments.out.name}", settings, results)


if __name__ == "__main__":
    main()
