"""The autoscaler beside the control loop: it looks, and changes the pools' sizes, as `experience/autoscaling.py` decides."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rayrlhf.actors.pool import ReplicaPool
from rayrlhf.actors.replica import State
from rayrlhf.actors.rollout import RolloutPool
from rayrlhf.actors.scoring import ScoringPool
from rayrlhf.config import AutoscaleConfig, RunConfig, ScaledRoleConfig
from rayrlhf.experience.autoscaling import Bounds, Memory, Seen, SeenRole, decide
from rayrlhf.pipelines.loop import ControlLoop
from rayrlhf.telemetry.events import Event

_LOOK_SECONDS = 1.0
"""Between two looks at what every worker does."""
_WINDOW_SECONDS = 20.0
"""A window of looks is at least so long, and until an update is made: the learner's waiting is a share of whole updates."""
_WINDOWS = 6
"""Windows that the present speed, and what a group takes of a worker, are measured over."""


@dataclass
class _Window:
    """Looks that are judged together."""

    since: float
    version: int
    used: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    """Share of each role's capacity in use, a look."""
    waiting: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    """Groups that wait for each role, a look."""
    learner_waits: list[bool] = field(default_factory=list)
    at_bound: list[bool] = field(default_factory=list)
    worked: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Seconds that each role's workers have worked."""
    done: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Groups that each role has finished in them."""

    def busy(self, role: int) -> float:
        """Share of a role's capacity in use while the learner waited."""
        held_up = [used for used, waits in zip(self.used[role], self.learner_waits, strict=True) if waits]
        return fmean(held_up or self.used[role])


class Autoscaler:
    """Keeps the pools of roles with `autoscale` at the sizes that the run is best carried on with."""

    def __init__(
        self,
        config: RunConfig,
        *,
        loop: ControlLoop,
        rollout: RolloutPool,
        scoring: ScoringPool,
        tell: Callable[[Event], None],
    ) -> None:
        self._roles = (config.rollout, config.scoring)
        self._slots = config.rollout.max_num_seqs
        self._samples = config.ppo.samples_per_prompt
        self._last = config.ppo.updates
        self._loop = loop
        self._rollout = rollout
        self._pools = (rollout.pool, scoring.pool)
        self._tell = tell
        self._memory = Memory()
        self._window: _Window | None = None
        self._ends: deque[tuple[float, int]] = deque(maxlen=_WINDOWS)
        """When a window ended, and under which version."""
        self._windows: deque[_Window] = deque(maxlen=_WINDOWS)
        self._finished: tuple[float, float] | None = None
        """Groups that each role had finished at the look before, if that was the second before."""

    async def run(self) -> None:
        """Look and resize, until cancelled. Windows begin with an update: before the first, waiting is no sign."""
        first = self._loop.version
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now, version = asyncio.get_running_loop().time(), self._loop.version
            if self._window is None:
                if self._loop.learner_waits is None:
                    first = version
                elif version > first:
                    self._begin(now)
                continue
            if self._loop.learner_waits is not None and all(pool.serving for pool in self._pools):
                self._look(self._window)
            else:
                self._finished = None
            if now >= self._window.since + _WINDOW_SECONDS and version > self._window.version and self._window.at_bound:
                await self._judge(self._window, now)
                self._begin(now)

    def _begin(self, now: float) -> None:
        self._window = _Window(now, self._loop.version)
        self._windows.append(self._window)
        self._ends.append((now, self._loop.version))

    def _look(self, window: _Window) -> None:
        """What every worker does at this moment."""
        work = [self._rollout.work_of(replica.number) for replica in self._pools[0].serving]
        pending = [replica.pending for replica in self._pools[1].serving]
        room, ledger, queued = self._loop.room, self._loop.ledger, self._rollout.waiting
        drawing = sum(one.get("groups", 0) for one in work)
        issued, scored = ((n - ledger.dropped) / self._samples for n in (ledger.issued, ledger.scored + ledger.dropped))
        unscored = max(0.0, issued - scored - queued - drawing)
        behind = sum(max(0, requests - 1) for requests in pending) / max(1, sum(pending))
        window.used[0].append(fmean(min(1.0, one.get("in_work", 0) / self._slots) for one in work))
        window.used[1].append(fmean(requests > 0 for requests in pending))
        window.waiting[0].append(queued + room)
        window.waiting[1].append(unscored * behind)
        window.learner_waits.append(bool(self._loop.learner_waits))
        window.at_bound.append(room == 0)
        finished = (scored + unscored, scored)
        if self._finished is not None:
            for role, pool in enumerate(self._pools):
                window.worked[role] += window.used[role][-1] * len(pool.serving) * _LOOK_SECONDS
                window.done[role] += finished[role] - self._finished[role]
        self._finished = finished

    async def _judge(self, window: _Window, now: float) -> None:
        version = self._loop.version
        since, before = self._ends[0]
        seen = Seen(
            since=window.since,
            at=now,
            rollout=self._seen_of(0, window, now),
            scoring=self._seen_of(1, window, now),
            learner_waiting=fmean(window.learner_waits),
            at_bound=fmean(window.at_bound),
            remaining=(self._last - version) * (now - since) / (version - before),
        )
        decision = decide(seen, self._memory)
        self._memory = decision.memory
        if decision.reason is None:
            return
        for pool, size in zip(self._pools, decision.sizes, strict=True):
            if pool.size != size:
                await pool.resize(size)
        self._tell(Event(kind="scale", text=decision.reason, step=version))

    def _seen_of(self, role: int, window: _Window, now: float) -> SeenRole:
        pool = self._pools[role]
        placing = [replica.born for replica in pool.replicas if replica.alive and replica.state is State.PLACING]
        starts = [replica.since - replica.born for replica in pool.serving]
        return SeenRole(
            bounds=_bounds(self._roles[role], pool),
            wanted=pool.size,
            serving=len(pool.serving),
            placing=len(placing),
            placing_seconds=now - min(placing, default=now),
            used=fmean(window.used[role]),
            busy=window.busy(role),
            waiting=fmean(window.waiting[role]),
            work=max(1e-6, sum(w.worked[role] for w in self._windows))
            / max(1.0, sum(w.done[role] for w in self._windows)),
            # Of several the quickest: others have waited for a place.
            start_seconds=min(starts, default=0.0),
        )


def goes_on_from(config: RunConfig, roles: Sequence[str]) -> str:
    """What the autoscaler makes of sizes that somebody has set for these roles, to be told with them; nothing without one."""
    told = ""
    for role in roles:
        bounds: AutoscaleConfig | None = getattr(config, role).autoscale
        if bounds is not None:
            told += f" Autoscaling of {role} workers goes on from there, between {bounds.min} and {bounds.max}."
    return told


def _bounds(role: ScaledRoleConfig, pool: ReplicaPool) -> Bounds:
    if role.autoscale is None:
        return Bounds(least=pool.size, most=pool.size)
    return Bounds(least=role.autoscale.min, most=role.autoscale.max)
