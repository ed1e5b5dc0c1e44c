"""One sweep from its beginning to its end under fire, and what was seen of it."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fault_checks import differences, leftovers, processes_that_finished
from fault_ground import Ground
from fault_kinds import KINDS, REFUSAL_SECONDS, REFUSALS, Scene
from fault_processes import Processes, using

from tdmpc2.sweeps.folder import SweepFolder

LOOK_SECONDS = 0.2
AT_ANY_TIME = 0.3
"""Share of faults that come at a random time; the others wait until a run has got on since the fault before."""
AFTER_SECONDS = 0.0, 4.0
LONGEST_WAIT = 90.0
"""Seconds after which a fault comes although no run has got on."""
MOST_RESTARTS = 10
"""Ends of a driver in a row with no fault between them, after which the sweep is given up."""
STILL_SECONDS = 600.0
"""Seconds with no fault and no sign of life of any run, after which the sweep is given up."""
END_SECONDS = 60.0
"""How long processes may go on after the last driver has ended."""


@dataclasses.dataclass
class Injected:
    """A fault that found its victim."""

    sweep: str
    seconds: float
    """Since the sweep's first driver was started."""
    kind: str
    victim: str
    before: dict[str, str]
    """How far each run had come."""
    driver_ended: int | None = None
    """Exit code of the driver, where it ended after this fault and before the next."""


@dataclasses.dataclass
class Seen:
    """What was seen of one sweep."""

    sweep: str
    faults: list[Injected] = dataclasses.field(default_factory=list)
    drivers: int = 0
    attempts: int = 0
    """Processes that began a run, by the runs' logs."""
    runs: int = 0
    refusals: list[float] = dataclasses.field(default_factory=list)
    """Seconds after which a second driver had been refused."""
    seconds: float = 0.0
    wrong: list[str] = dataclasses.field(default_factory=list)
    """What must not be; empty in a product without faults of its own."""


class Schedule:
    """Which kind of fault is next: all of a turn in a random order, again and again.

    Args:
        random: the source of chance.
        turn: kinds of fault, each as often as it is to come in a turn.
    """

    def __init__(self, random: random.Random, turn: Sequence[str]) -> None:
        self._random, self._turn = random, list(turn)
        self._left: list[str] = []

    def inject(self, scene: Scene) -> tuple[str, str] | None:
        """Inject the first kind of the turn that finds a victim; the kind and the victim."""
        if not self._left:
            self._left = self._random.sample(self._turn, len(self._turn))
        for kind in dict.fromkeys(self._left):
            victim = KINDS[kind](scene)
            if victim is not None:
                self._left.remove(kind)
                return kind, victim
        return None


class Round:
    """A sweep under fire.

    Args:
        ground: where.
        processes: follows the drivers.
        place: folder of the sweep on the disk.
        undisturbed: the sweep as it went when nobody disturbed it.
        seed: of everything that is left to chance.
        schedule: which faults.
        log: file that takes a line of JSON for each fault.
    """

    def __init__(
        self,
        ground: Ground,
        processes: Processes,
        place: str,
        undisturbed: SweepFolder,
        seed: int,
        schedule: Schedule,
        log: Path,
    ) -> None:
        self._random, self._schedule, self._log = random.Random(f"{seed} {place}"), schedule, log
        self._processes, self._undisturbed = processes, undisturbed
        self.seen = Seen(place)
        self._began = time.monotonic()
        names = undisturbed.run_names()
        self._scene = Scene(ground, place, names, self._random, processes, self._start(ground, place))
        self._done_by: dict[str, set[int]] = {}
        self._marks: dict[str, int] = {}
        self._last_fault = self._last_sign = time.monotonic()
        self._plan_next()

    # --- the course of things

    def run(self, most: int, until: float) -> Seen:
        """Disturb the sweep until it is done, then check it.

        Args:
            most: faults after which it is left alone.
            until: time on the monotonic clock from which on it is left alone.
        """
        restarts = 0
        while not self.seen.wrong:
            self._look()
            if self._scene.rivals:
                self._decide_between_drivers()
            elif (code := self._scene.driver.poll()) is not None:
                if self.seen.faults and self.seen.faults[-1].driver_ended is None:
                    self.seen.faults[-1].driver_ended = code
                    restarts = 0
                if code == 0:
                    break
                restarts += 1
                if restarts > MOST_RESTARTS:
                    self._give_up(f"{restarts} drivers in a row ended with no fault between")
                else:
                    self._scene.driver = self._start(self._scene.ground, self._scene.place)
            elif len(self.seen.faults) < most and time.monotonic() < until:
                self._inject_when_due()
            if time.monotonic() - max(self._last_sign, self._last_fault) > STILL_SECONDS:
                self._give_up(f"no run got on for {STILL_SECONDS:.0f} s")
            time.sleep(LOOK_SECONDS)
        self._end()
        return self.seen

    def _start(self, ground: Ground, place: str) -> subprocess.Popen[bytes]:
        driver = ground.start(place)
        self._processes.add(driver.pid)
        self.seen.drivers += 1
        return driver

    def _look(self) -> None:
        """See who lives and how far the runs are, and end faults whose time is over."""
        self._scene.end_what_lasts()
        self._processes.look()
        for run in self._scene.runs():
            name, status = run.path.name, run.read_status()
            if status is None:
                continue
            if status.state == "done":
                self._done_by.setdefault(name, set()).add(status.pid)
            steps = status.agent_steps + status.updates
            if steps != self._marks.get(name):
                self._last_sign = time.monotonic()
                if steps > self._marks.get(name, 0) and self._processes.lives(status.pid):
                    self._got_on = True
                self._marks[name] = steps

    def _plan_next(self) -> None:
        self._got_on = self._random.random() < AT_ANY_TIME
        self._wait = self._random.uniform(*AFTER_SECONDS)
        self._due: float | None = None

    def _inject_when_due(self) -> None:
        now = time.monotonic()
        if self._due is None and (self._got_on or now - self._last_fault > LONGEST_WAIT):
            self._due = now + self._wait
        if self._due is None or now < self._due:
            return
        before = self._scene.states()
        injected = self._schedule.inject(self._scene)
        if injected is None:
            return
        fault = Injected(self.seen.sweep, round(now - self._began, 1), *injected, before)
        self.seen.faults.append(fault)
        line = {name: value for name, value in dataclasses.asdict(fault).items() if name != "driver_ended"}
        with self._log.open("a") as log:
            log.write(json.dumps(line) + "\n")
        self._last_fault = now
        self._plan_next()

    # --- two drivers

    def _decide_between_drivers(self) -> None:
        """Wait until one driver is left; every other must have been refused by a clear message."""
        scene = self._scene
        drivers = [scene.driver, *scene.rivals]
        living = [driver for driver in drivers if driver.poll() is None]
        if len(living) > 1:
            if time.monotonic() - scene.rivals_since > REFUSAL_SECONDS:
                self._give_up(f"{len(living)} drivers at work on one sweep")
            return
        done = [driver for driver in drivers if driver.returncode == 0]
        for rival in scene.rivals:
            said = scene.ground.output(rival)
            if rival in living:
                self.seen.drivers += 1
            elif rival.returncode == 2 and any(words in said for words in REFUSALS):
                self.seen.refusals.append(round(time.monotonic() - scene.rivals_since, 1))
            elif rival in done and scene.driver in living:
                self.seen.wrong.append("a second driver worked on a sweep that another one held")
            elif rival not in done and living:
                self.seen.wrong.append(f"a second driver ended with {rival.returncode}, and said: {said[-500:]}")
        scene.driver = (living or done or drivers)[0]
        scene.rivals = []

    # --- the end

    def _give_up(self, why: str) -> None:
        last = self._scene.ground.output(self._scene.driver)[-2000:]
        self.seen.wrong.append(f"given up: {why}; runs: {self._scene.states()}; the last driver said:\n{last}")

    def _end(self) -> None:
        """Check what must hold, and leave no process behind."""
        scene, seen = self._scene, self.seen
        scene.end_what_lasts(at_once=True)
        seen.seconds = time.monotonic() - self._began
        if not seen.wrong:
            self._call_again()
        if not _wait(self._all_are_gone, END_SECONDS) or seen.wrong:
            strays = self._processes.end()
            seen.wrong += [] if seen.wrong else [f"still there: {line}" for line in strays]
        seen.wrong += [f"still there: {line}" for line in using(str(scene.ground.folder))]
        seen.wrong += [f"left behind: {path}" for path in leftovers(scene.sweep, scene.ground.temporary)]
        seen.wrong += differences(self._undisturbed, scene.sweep)
        seen.runs = len(scene.runs())
        for run in scene.runs():
            log = run.path / "run.log"
            seen.attempts += log.read_text(errors="replace").count("started on") if log.exists() else 0
            finished = processes_that_finished(run)
            twice = finished & self._done_by.get(run.path.name, set())
            if len(twice) > 1 or not finished:
                seen.wrong.append(f"{run.path.name}: trained to the end {len(twice)} times, by processes {finished}")
        if {entry.name for entry in scene.sweep.read_plan()} != set(scene.names):
            seen.wrong.append("plan.json does not name the runs")
        if failures := scene.sweep.read_failures():
            seen.wrong.append(f"failures.json still tells of {failures}")

    def _call_again(self) -> None:
        """The same command once more: it finds everything done, or mends a status that was damaged in the end."""
        self._look()
        statuses = [run.read_status() for run in self._scene.runs()]
        all_done = all(status is not None and status.state == "done" for status in statuses)
        driver = self._start(self._scene.ground, self._scene.place)

        def has_ended() -> bool:
            self._look()
            return driver.poll() is not None

        if not _wait(has_ended, STILL_SECONDS):
            self.seen.wrong.append("the same command once more did not end")
        elif driver.returncode != 0:
            said = self._scene.ground.output(driver)[-1000:]
            self.seen.wrong.append(f"the same command once more ended with {driver.returncode}, and said: {said}")
        elif all_done and " 0 to run" not in self._scene.ground.output(driver):
            self.seen.wrong.append("the same command once more began runs that were done")

    def _all_are_gone(self) -> bool:
        self._processes.look()
        return not self._processes.alive()


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition comes true within a time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True
