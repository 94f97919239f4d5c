"""Engines that share CPU cores: the fullest batch is computed first, and all work gets done."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from lm_eval_tandem.engines.hf.cpu_scheduler import CpuScheduler


class Worker:
    """Does the jobs that it is given, `size` at once, and passes each on as often as its number requires."""

    def __init__(self, scheduler: CpuScheduler, size: int, log: list[tuple[str, int]], name: str) -> None:
        self.scheduler, self.size, self.log, self.name = scheduler, size, log, name
        self.jobs: list[int] = []
        self.other: Worker | None = None
        self.wake = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def fill(self) -> float:
        return min(1.0, len(self.jobs) / self.size)

    def give(self, jobs: list[int]) -> None:
        with self.wake:
            self.jobs += jobs
            self.wake.notify()

    def close(self) -> None:
        with self.wake:
            self.closed = True
            self.wake.notify()

    def _run(self) -> None:
        with self.scheduler.registered(self.fill):
            while True:
                with self.wake:
                    self.wake.wait_for(lambda: self.closed or self.jobs)
                    if self.closed:
                        return
                with self.scheduler.turn(self.fill):
                    with self.wake:  # what is given meanwhile is not lost
                        done, self.jobs = self.jobs[: self.size], self.jobs[self.size :]
                    self.log.append((self.name, len(done)))
                assert self.other is not None
                self.other.give([left - 1 for left in done if left])


def counted(log: list[tuple[str, int]]) -> int:
    return sum(n for _, n in log)


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    assert holds()


def test_the_fullest_goes_first_and_the_emptier_gathers() -> None:
    scheduler, log = CpuScheduler(), []
    one, two = (Worker(scheduler, 4, log, name) for name in ("one", "two"))
    one.other, two.other = two, one
    one.give([0] * 12)
    two.give([0])
    left = threading.Event()

    def mine() -> float:
        return 0.0 if left.is_set() else 2.0

    with scheduler.registered(mine), scheduler.turn(mine):  # until both wait for their turn
        for worker in (one, two):
            worker.thread.start()
        eventually(lambda: len(scheduler._waiting) == 2)
        left.set()
    eventually(lambda: counted(log) == 13)
    one.close()
    two.close()
    assert log == [("one", 4), ("one", 4), ("one", 4), ("two", 1)]


def test_all_work_gets_done_however_jobs_wander() -> None:
    scheduler, log = CpuScheduler(), []
    workers = [Worker(scheduler, size, log, str(size)) for size in (3, 8)]
    workers[0].other, workers[1].other = workers[1], workers[0]
    rng = random.Random(0)
    jobs = [rng.randrange(20) for _ in range(300)]
    for worker in workers:
        worker.thread.start()
    for job in jobs:
        rng.choice(workers).give([job])
    wanted = sum(jobs) + len(jobs)
    eventually(lambda: counted(log) == wanted)
    for worker in workers:
        worker.close()
    for worker in workers:
        worker.thread.join(timeout=600)
    assert counted(log) == wanted


def test_who_has_left_holds_nobody_up() -> None:
    scheduler, log = CpuScheduler(), []
    with scheduler.registered(lambda: 1.0):
        pass
    worker = Worker(scheduler, 4, log, "alone")
    worker.other = worker
    worker.give([0])
    worker.thread.start()
    eventually(lambda: log == [("alone", 1)])
    worker.close()
