"""How many workers a run is best carried on with: from what is seen of it to sizes. Knows no clock, and nothing of Ray.

What a group takes of a role's workers is measured, whatever their number. So the load of each role is known: the workers
that keep up with the run's present speed. Sizes in proportion to the loads carry the run faster, until the learner, the
bounds or the cluster's places end it.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

_LEARNER_WAITS = 0.15
"""Share of the time above which the learner is held up."""
_FULL = 0.9
"""Share of a role's capacity in use from which on it is what the others wait for, if work waits for it."""
_QUEUE = 2.0
"""Groups that make such a queue, on average."""
_AT_BOUND = 0.5
"""Share of the time above which admission, not the workers, holds new groups back."""
_MOST_FASTER = 2.0
"""A run is planned to become so many times faster at most by one change: beyond, loads are guesses."""
_LEAST_FASTER = 1.05
"""And so many times at least: less is within the error of what is seen."""
_TIGHT, _ROOMY, _BURSTS = 0.95, 0.75, 0.5
"""Share of a role's capacity that its load is planned to take: where places are short; where they are not; where the run
waits for single responses, so that work comes in bursts."""
_PATIENCE_TO_GROW, _PATIENCE_TO_SHRINK = 2, 3
"""Windows in a row that must ask for the same direction."""
_LEAST_STUCK = 5.0
"""Seconds without a place that are no sign of a full cluster yet."""
_GIVE_UP = 60.0
"""Seconds that a place is waited for while no other role has one to give."""
_PLACES_KEPT = 600.0
"""Seconds after which a cluster that was full is asked for a place more."""


class Sizes(NamedTuple):
    """Something of each role, such as its number of workers."""

    rollout: int
    scoring: int


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How many workers a role may have; `least` = `most` where its number is fixed."""

    least: int
    most: int


@dataclass(frozen=True, kw_only=True)
class SeenRole:
    """What is seen of a role over a window of time."""

    bounds: Bounds
    wanted: int
    """Workers its pool is to have."""
    serving: int
    """Workers that take work at the end of the window."""
    placing: int = 0
    """Workers that the cluster has no place for at the end of the window."""
    placing_seconds: float = 0.0
    """How long the first of them has waited."""
    used: float
    """Share of the serving workers' capacity in use, of 1."""
    busy: float
    """The same, of the time that the learner waited."""
    waiting: float
    """Groups that wait for one of its workers, on average."""
    work: float
    """Seconds of a worker that a group takes, measured over several windows."""
    start_seconds: float
    """From asking for a worker to its first work, as measured."""

    @property
    def full(self) -> bool:
        """Whether the learner waits for this role."""
        return self.busy >= _FULL and self.waiting >= _QUEUE

    @property
    def stuck(self) -> bool:
        """Whether it lacks nothing but places, and longer than a start takes."""
        waited = self.placing_seconds >= max(self.start_seconds, _LEAST_STUCK)
        return self.placing > 0 and waited and self.serving + self.placing >= self.wanted


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is seen of a run over a window of time, in which the learner made an update at least."""

    since: float
    """When the window began, in seconds of any clock."""
    at: float
    """When it ended."""
    rollout: SeenRole
    scoring: SeenRole
    learner_waiting: float
    """Share of the time that the learner lacked a batch, of that in which it trained or would have."""
    at_bound: float
    """Share of the time that admission let no group in."""
    remaining: float
    """Seconds until the last update, at the present speed."""

    @property
    def roles(self) -> tuple[SeenRole, SeenRole]:
        return self.rollout, self.scoring

    @property
    def current(self) -> Sizes:
        """Workers that are there or on their way: those without a place in a full cluster are neither."""
        return Sizes(*(role.serving if role.stuck else role.wanted for role in self.roles))

    @property
    def loads(self) -> list[float]:
        """Workers of each role that the run's present speed takes: as fast as the roles that are full."""
        speeds = [role.serving / role.work for role in self.roles if role.full]
        if not speeds:
            return [max(0.01, role.serving * role.used) for role in self.roles]
        return [role.work * min(speeds) for role in self.roles]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is known from the windows before."""

    sizes: Sizes | None = None
    """Sizes that were asked for last; other ones at the next look are somebody else's."""
    changed_at: float = -math.inf
    direction: tuple[int, int] = (0, 0)
    """-1, 0 or 1 for each role: what the windows before asked for."""
    times: int = 0
    """How many of them in a row."""
    places: int | None = None
    """Workers of both roles that the cluster has places for; None: not known to be short."""
    places_at: float = -math.inf
    """When that was seen."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Sizes, why they are other than before (None where they are not), and what to remember."""

    sizes: Sizes
    reason: str | None
    memory: Memory


def decide(seen: Seen, memory: Memory) -> Decision:
    """Sizes for what was seen over one window, and the memory for the next."""
    wanted = Sizes(seen.rollout.wanted, seen.scoring.wanted)
    if memory.sizes not in (None, wanted):
        memory = Memory(changed_at=seen.at, places=memory.places, places_at=memory.places_at)
    memory = _count_places(seen, replace(memory, sizes=wanted))
    start = max(role.start_seconds for role in seen.roles)
    starting = any(role.serving < role.wanted and not role.stuck for role in seen.roles)
    if starting or (seen.since < memory.changed_at + start and not any(role.stuck for role in seen.roles)):
        return Decision(sizes=wanted, reason=None, memory=memory)
    target, why = _target(seen, memory.places)
    if target == seen.current and memory.places is not None and seen.at > memory.places_at + _PLACES_KEPT:
        target, why = _target(seen, memory.places + 1)
    direction = (_sign(target.rollout - seen.current.rollout), _sign(target.scoring - seen.current.scoring))
    if not any(direction) or target == wanted:
        return _give_up_or_stay(seen, memory)
    times = memory.times + 1 if direction == memory.direction else 1
    patience = _PATIENCE_TO_GROW if max(direction) > 0 else _PATIENCE_TO_SHRINK
    # What waits for a place has been found worth it already.
    if times < patience and not any(role.stuck for role in seen.roles):
        return Decision(sizes=wanted, reason=None, memory=replace(memory, direction=direction, times=times))
    if any(role.stuck for role in seen.roles):
        why = f"the cluster has places for {memory.places} workers, {why}"
    return _change(target, f"{_steps(wanted, target)}, {why}.", seen, memory)


def _change(sizes: Sizes, reason: str, seen: Seen, memory: Memory) -> Decision:
    changed = Memory(sizes=sizes, changed_at=seen.at, places=memory.places, places_at=memory.places_at)
    return Decision(sizes=sizes, reason=f"Autoscaling: {reason}", memory=changed)


def _count_places(seen: Seen, memory: Memory) -> Memory:
    """A role that is stuck shows how many places there are."""
    serving = seen.rollout.serving + seen.scoring.serving
    if any(role.stuck for role in seen.roles):
        return replace(memory, places=serving, places_at=seen.at)
    return replace(memory, places=None) if memory.places is not None and serving > memory.places else memory


def _give_up_or_stay(seen: Seen, memory: Memory) -> Decision:
    """Nothing is to be changed, but for workers that have waited for a place too long."""
    wanted = Sizes(seen.rollout.wanted, seen.scoring.wanted)
    memory = replace(memory, direction=(0, 0), times=0)
    fewer = Sizes(*(_within(role.bounds, now) for role, now in zip(seen.roles, seen.current, strict=True)))
    patient = any(r.stuck and r.placing_seconds < max(_GIVE_UP, 3.0 * r.start_seconds) for r in seen.roles)
    if fewer == wanted or patient:
        return Decision(sizes=wanted, reason=None, memory=memory)
    return _change(fewer, f"{_steps(wanted, fewer)}, the cluster has no place for more.", seen, memory)


def _target(seen: Seen, places: int | None) -> tuple[Sizes, str]:
    """The sizes that what was seen asks for, and why."""
    held_up = seen.learner_waiting >= _LEARNER_WAITS
    full = [role.full for role in seen.roles]
    if held_up and any(full):
        goal = min(_MOST_FASTER, 1.0 / max(0.01, 1.0 - seen.learner_waiting))
        faster, sizes = _planned(seen, goal, places)
        grown = [role for role, now, to in zip(seen.roles, seen.current, sizes, strict=True) if to > now]
        if grown and faster >= _LEAST_FASTER and _worth(seen, faster, grown):
            return sizes, _why_grow(seen, sizes)
    share = _ROOMY if any(full) or not held_up else _BURSTS
    needed = [math.ceil(load / share - 1e-6) for load in seen.loads]
    # Rollout workers idle for want of work only where admission holds it back, for the learner or for scoring.
    idle = Sizes(seen.at_bound >= _AT_BOUND and (not held_up or seen.scoring.full), True)
    shrunk = (
        _within(role.bounds, min(now, need) if may else now)
        for role, now, need, may in zip(seen.roles, seen.current, needed, idle, strict=True)
    )
    return Sizes(*shrunk), _why_shrink(seen, held_up)


def _planned(seen: Seen, goal: float, places: int | None) -> tuple[float, Sizes]:
    """How many times faster the run can become, up to `goal`, and the smallest sizes for it.

    Where places are not short, a role keeps what it has of what a roomier plan would give it.
    """
    loads = [load / (1.0 if role.full else _TIGHT) for load, role in zip(seen.loads, seen.roles, strict=True)]
    bounds = [role.bounds for role in seen.roles]
    faster = min(goal, *(bound.most / load for bound, load in zip(bounds, loads, strict=True)))
    if places is not None:
        splits = (
            (rollout, min(bounds[1].most, places - rollout))
            for rollout in range(bounds[0].least, min(bounds[0].most, places - bounds[1].least) + 1)
        )
        best = max((min(rollout / loads[0], scoring / loads[1]) for rollout, scoring in splits), default=0.0)
        faster = min(faster, best)
    sizes = []
    for bound, load, now in zip(bounds, loads, seen.current, strict=True):
        least, most = (math.ceil(load * faster * share - 1e-6) for share in (1.0, _TIGHT / _ROOMY))
        sizes.append(_within(bound, least if places is not None else min(max(now, least), most)))
    return faster, Sizes(*sizes)


def _worth(seen: Seen, faster: float, grown: list[SeenRole]) -> bool:
    """Whether what is left of the run is shortened by more than the starts take."""
    start = max(role.start_seconds for role in grown)
    return (seen.remaining - start) * (1.0 - 1.0 / faster) > start


def _within(bounds: Bounds, size: int) -> int:
    return min(max(size, bounds.least), bounds.most)


def _sign(difference: int) -> int:
    return (difference > 0) - (difference < 0)


# -- in words ---------------------------------------------------------------------------------------------------------


def _steps(now: Sizes, to: Sizes) -> str:
    changed = [name for name in Sizes._fields if getattr(now, name) != getattr(to, name)]
    return " and ".join(f"{name} workers {getattr(now, name)} -> {getattr(to, name)}" for name in changed)


def _why_grow(seen: Seen, to: Sizes) -> str:
    why = [f"the learner waits {100 * seen.learner_waiting:.0f} % of the time"]
    if seen.rollout.full:
        why.append("all workers are busy" if to.rollout > seen.current.rollout else "all rollout workers are busy")
    if seen.scoring.full:
        why.append(f"{seen.scoring.waiting:.0f} drawn groups wait for their score")
    why += [
        f"{_in_use(role)} of the {name} workers' capacity is in use"
        for role, name, now, size in zip(seen.roles, Sizes._fields, seen.current, to, strict=True)
        if size < now and not role.full
    ]
    return f"{', '.join(why[:-1])} and {why[-1]}"


def _why_shrink(seen: Seen, held_up: bool) -> str:
    use = f"{_in_use(seen.rollout)} of the rollout and {_in_use(seen.scoring)} of the scoring capacity is in use"
    return f"{use}, the learner waits {'' if held_up else 'only '}{100 * seen.learner_waiting:.0f} % of the time"


def _in_use(role: SeenRole) -> str:
    return f"{100 * role.used:.0f} %"
