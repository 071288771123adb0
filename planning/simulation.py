"""A run simulated event by event: queues, pools, lost nodes, stragglers, throttling.

    work ──► Listeners ──► tables ──► engines ──► commits ──► driver

Blocks and tables are those of the job (``pipelines.blocks``); recordings and clips are sums within them. The clips in
flight in an engine share its rate, and none is faster than a clip alone. A lost node's blocks go back to the queue that
they came from, and what its Listeners had made for engines is made again, as Ray does.
"""

import itertools
import math
import random
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import simpy

from pipelines.blocks import blocks_per_engine
from planning.estimate import GBIT
from planning.rates import Rates
from planning.scenario import Faults, Machines, Workload, block_size, table_speech_s

Process = Generator[simpy.Event, Any, None]
Item = TypeVar("Item")

# cluster.ray_internals.MAX_QUEUED_BLOCKS, without importing Ray.
MAX_QUEUED_TABLES = 1_000
# More blocks than this are not simulated: a part of the cluster with its part of the work is, with its part of the
# driver's and the storage's rate. A queue for many servers is the same for a part of them.
MAX_BLOCKS = 20_000


@dataclass
class _Block:
    """Recordings on their way to a Listener."""

    durations: list[float]


@dataclass
class _Table:
    """Clips on their way to an engine."""

    recordings: int
    speech_s: float
    clips: float
    block: _Block
    listener_node: int
    left_s: float = 0.0  # of speech, in the engine


@dataclass(frozen=True)
class Simulated:
    """What a simulated run has been like.

    Attributes:
        wall_s: from the start of the job to the last receipt.
        work_s: from the first engine's readiness to the last commit, as run.json has it.
        listeners, engines, driver: the share of ``wall_s`` that each was busy.
        repeated: the share of recordings that were listened to or transcribed again.
        lost_nodes: how many nodes were lost.
    """

    wall_s: float
    work_s: float
    listeners: float
    engines: float
    driver: float
    repeated: float
    lost_nodes: int


def simulate(
    workload: Workload,
    machines: Machines,
    rates: Rates,
    faults: Faults,
    seed: int = 0,
    durations: Sequence[float] | None = None,
) -> Simulated:
    """Simulates a run.

    Args:
        workload, machines, rates, faults: as of ``planning.estimate.estimate``.
        seed: of lengths and faults.
        durations: of the recordings, in seconds, where they are known; else drawn.
    """
    size = block_size(workload, machines)
    parts = max(1, math.ceil(workload.recordings / size / MAX_BLOCKS))
    parts = min(parts, machines.engines, machines.listeners)
    rng = random.Random(seed)
    drawn = list(durations or workload.durations(rng, workload.recordings // parts))
    blocks = [_Block(drawn[at : at + size]) for at in range(0, len(drawn), size)]
    return _Run(workload, machines, rates, faults, rng, blocks, parts).result()


class _Queue(Generic[Item]):
    """Items, and the processes that wait for one. ``limit``: of items, for those who ask ``full``."""

    def __init__(self, env: simpy.Environment, items: Iterable[Item] = (), limit: int = sys.maxsize) -> None:
        self._env, self._limit = env, limit
        self._items = deque(items)
        self._waiting: deque[simpy.Event] = deque()
        self._for_room: deque[simpy.Event] = deque()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return len(self._items) >= self._limit

    def put(self, item: Item, first: bool = False) -> None:
        (self._items.appendleft if first else self._items.append)(item)
        if self._waiting:
            self._waiting.popleft().succeed()

    def take(self) -> Item:
        if self._for_room and not len(self._items) > self._limit:
            self._for_room.popleft().succeed()
        return self._items.popleft()

    def take_all(self, which: Callable[[Item], bool]) -> list[Item]:
        taken = [item for item in self._items if which(item)]
        self._items = deque(item for item in self._items if not which(item))
        return taken

    def item(self) -> simpy.Event:
        """An event that happens when an item is put; ``forget`` it if it is not waited for any more."""
        event = self._env.event()
        self._waiting.append(event)
        return event

    def room(self) -> simpy.Event:
        """An event that happens when an item is taken."""
        event = self._env.event()
        self._for_room.append(event)
        return event

    def forget(self, event: simpy.Event) -> None:
        for waiting in (self._waiting, self._for_room):
            if event in waiting:
                waiting.remove(event)


class _Node:
    """A node with actors, which are interrupted when it is lost."""

    def __init__(self, number: int, env: simpy.Environment) -> None:
        self.number = number
        self.actors: list[simpy.Process] = []
        self.up = env.event().succeed()


class _Run:
    """One simulated run, of a part of the cluster."""

    def __init__(
        self,
        workload: Workload,
        machines: Machines,
        rates: Rates,
        faults: Faults,
        rng: random.Random,
        blocks: list[_Block],
        parts: int,
    ) -> None:
        self._workload, self._machines, self._rates, self._faults, self._rng = workload, machines, rates, faults, rng
        self._env = simpy.Environment()
        self._work = _Queue(self._env, blocks)
        self._tables: _Queue[_Table] = _Queue(self._env, limit=MAX_QUEUED_TABLES)
        self._left = sum(len(block.durations) for block in blocks)
        self._total = self._left
        self._driver = simpy.Resource(self._env)
        self._parts = parts
        self._table_speech_s = table_speech_s(machines)
        self._blocks_per_engine = blocks_per_engine(machines.concurrent_clips, machines.engines)
        self._done = self._env.event()
        self._busy = {"listeners": 0.0, "engines": 0.0, "driver": 0.0}
        self._repeated = self._lost = 0
        self._committed_at = 0.0
        self._listeners = max(1, round(machines.listeners / parts))
        self._engines = max(1, round(machines.engines / parts))
        self._start_nodes()

    def result(self) -> Simulated:
        self._env.run(until=self._done)
        ready = self._rates.engine_start_s.value
        work_s = max(1e-9, self._committed_at - ready)
        return Simulated(
            wall_s=self._env.now,
            work_s=work_s,
            listeners=self._busy["listeners"] / self._listeners / self._env.now,
            engines=self._busy["engines"] / self._engines / self._env.now,
            driver=self._busy["driver"] / self._env.now,
            repeated=self._repeated / self._total,
            lost_nodes=self._lost * self._parts,
        )

    def _start_nodes(self) -> None:
        numbers = itertools.count()
        for count, on_each, actor in (
            (self._listeners, self._machines.listeners_per_node, self._listener),
            (self._engines, self._machines.engines_per_node, self._engine),
        ):
            for first in range(0, count, on_each):
                node = _Node(next(numbers), self._env)
                for _ in range(min(on_each, count - first)):
                    node.actors.append(self._env.process(actor(node)))
                if self._faults.interruptions_per_day:
                    self._env.process(self._lose(node))

    def _lose(self, node: _Node) -> Process:
        """Loses a node now and then, and brings it back."""
        while True:
            yield self._env.timeout(self._rng.expovariate(self._faults.interruptions_per_day / 86_400))
            self._lost += 1
            node.up = self._env.event()
            for table in self._tables.take_all(lambda table: table.listener_node == node.number):
                self._listen_again(table)
            for actor in node.actors:
                actor.interrupt()
            yield self._env.timeout(self._faults.replacement_s)
            node.up.succeed()

    def _listen_again(self, table: _Table) -> None:
        share = table.recordings
        self._repeated += share
        mean_s = sum(table.block.durations) / len(table.block.durations)
        self._work.put(_Block([mean_s] * share), first=True)

    def _listener(self, node: _Node) -> Process:
        block: _Block | None = None
        waiting = None
        while True:
            try:
                yield node.up
                yield self._env.timeout(self._rates.listener_start_s.value)
                while True:
                    while not self._work or self._tables.full:
                        waiting = self._tables.room() if self._tables.full else self._work.item()
                        yield waiting
                    block = self._work.take()
                    yield from self._drive(len(block.durations))
                    yield from self._listen(node, block)
                    block = None
            except simpy.Interrupt:
                self._forget(waiting)
                if block is not None:
                    self._repeated += len(block.durations)
                    self._work.put(block, first=True)
                    block = None

    def _forget(self, waiting: simpy.Event | None) -> None:
        if waiting is not None:
            self._work.forget(waiting)
            self._tables.forget(waiting)

    def _drive(self, recordings: int) -> Process:
        """Half of what the driver does for recordings: to send a block, or to receive the receipts of a table."""
        with self._driver.request() as turn:
            yield turn
            took = self._rates.driver_block_s.value + recordings * self._rates.driver_row_s.value / 2
            took *= self._parts
            yield self._env.timeout(took)
            self._busy["driver"] += took

    def _listen(self, node: _Node, block: _Block) -> Process:
        """A block's recordings, whose clips are queued for engines, a table as soon as it is full."""
        pending = pending_s = 0.0
        for number, duration_s in enumerate(block.durations, 1):
            took = self._listen_s(duration_s)
            yield self._env.timeout(took)
            self._busy["listeners"] += took
            pending += 1
            pending_s += duration_s * self._workload.speech_share
            if pending_s >= self._table_speech_s or number == len(block.durations):
                clips = max(1.0, pending_s / self._workload.clip_s)
                self._tables.put(_Table(int(pending), pending_s, clips, block, node.number))
                pending = pending_s = 0.0

    def _listen_s(self, duration_s: float) -> float:
        faults, took = self._faults, duration_s / self._rates.listener_rtfx.value
        if faults.straggler_share and self._rng.random() < faults.straggler_share:
            took *= faults.straggler_factor
        took += self._rates.recording_s.value
        while faults.throttled_share and self._rng.random() < faults.throttled_share:
            took += self._rng.uniform(0, 2 * faults.backoff_s)
        if self._machines.storage_gbit_s:  # every Listener has its part
            size = duration_s * self._workload.mb_per_hour * 1e6 / 3600
            took = max(took, size / (self._machines.storage_gbit_s * GBIT / self._machines.listeners))
        return took

    def _engine(self, node: _Node) -> Process:
        decoding: list[_Table] = []
        committing: list[simpy.Event] = []
        while True:
            try:
                yield node.up
                yield self._env.timeout(self._rates.engine_start_s.value)
                while True:
                    committing = [each for each in committing if not each.processed]
                    while self._tables and len(decoding) + len(committing) < self._blocks_per_engine:
                        table = self._tables.take()
                        table.left_s = table.speech_s
                        decoding.append(table)
                    yield from self._decode(decoding, committing)
            except simpy.Interrupt:
                for table in reversed(decoding):
                    self._repeated += table.recordings
                    self._tables.put(table, first=True)
                decoding, committing = [], []

    def _decode(self, decoding: list[_Table], committing: list[simpy.Event]) -> Process:
        """Decodes until a table is finished or another may be taken."""
        speeds = self._speeds(decoding)
        until = [*committing]
        if decoding:
            seconds = min(each.left_s / speed for each, speed in zip(decoding, speeds, strict=True))
            until.append(self._env.timeout(max(0.0, seconds)))
        arrival = self._tables.item() if len(decoding) + len(committing) < self._blocks_per_engine else None
        began = self._env.now
        try:
            yield self._env.any_of([*until, arrival] if arrival else until)
        finally:
            if arrival:
                self._tables.forget(arrival)
        passed = self._env.now - began
        self._busy["engines"] += passed if decoding else 0.0
        for table, speed in zip([*decoding], speeds, strict=True):
            table.left_s -= speed * passed
            if table.left_s <= 1e-9 + 1e-6 * table.speech_s:
                decoding.remove(table)
                committing.append(self._env.process(self._commit(table)))

    def _speeds(self, decoding: Sequence[_Table]) -> list[float]:
        """Seconds of speech a second of each table: clips have the engine's slots in the order of arrival."""
        free: float = math.ceil(1.1 * self._machines.concurrent_clips)  # speech.transcriber sends a tenth more
        flying = []
        for table in decoding:
            left = table.clips * table.left_s / table.speech_s if table.speech_s else 1.0
            flying.append(min(free, max(1.0, left)))
            free -= flying[-1]
        each = min(self._rates.clip_rtfx.value, self._rates.engine_rtfx.value / max(1.0, sum(flying)))
        return [max(1e-9, clips) * each for clips in flying]

    def _commit(self, table: _Table) -> Process:
        yield self._env.timeout(self._rates.commit_s.value)
        self._committed_at = self._env.now
        self._env.process(self._receive(table))

    def _receive(self, table: _Table) -> Process:
        yield from self._drive(table.recordings)
        self._left -= table.recordings
        if self._left <= 0 and not self._done.triggered:
            self._done.succeed()
