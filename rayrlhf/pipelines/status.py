"""What a PPO stage shows of itself while it runs."""

from collections.abc import Mapping
from typing import Any

from rayrlhf.actors.pool import ReplicaPool
from rayrlhf.actors.rollout import RolloutPool
from rayrlhf.actors.routing import AS_LOADED
from rayrlhf.actors.scoring import ScoringPool
from rayrlhf.pipelines.loop import ControlLoop
from rayrlhf.pipelines.trainer import Trainer


def ppo_status(
    loop: ControlLoop,
    rollout: RolloutPool,
    scoring: ScoringPool,
    trainer: Trainer,
    *,
    now: float,
    restarts: Mapping[str, int],
    staleness: float,
    max_staleness: int,
) -> dict[str, Any]:
    """Workers, queues and waits; `now` is of the event loop's clock."""
    workers = [*_workers(rollout.pool, now), *_workers(scoring.pool, now)]
    for worker in workers[: len(rollout.pool.replicas)]:
        worker |= rollout.work_of(worker["number"])
    buffered, waiting = len(loop.buffer), rollout.waiting
    drawing = sum(worker.get("groups", 0) for worker in workers)
    learner = trainer.workers(now)
    replaced = [f"the learner is replaced ({w['state']})" for w in learner[:1] if w["state"] != "serving"]
    placing = [
        f"{w['role']} worker {w['number']} waits for a place" for w in workers if w["state"].startswith("waiting")
    ]
    return {
        "version": loop.version,
        "workers": [*workers, *learner],
        "queues": {
            "wait for a worker": waiting,
            "are drawn": drawing,
            # Of several readings, none at the same moment.
            "wait for their score": max(0, loop.admission.in_flight - waiting - drawing - buffered - loop.training),
            "wait for the learner": buffered,
            "are trained": loop.training,
        },
        "staleness": staleness,
        "max_staleness": max_staleness,
        "restarts": dict(restarts),
        "waits": [f"the learner {loop.learner_does}", *replaced, *placing],
    }


def _workers(pool: ReplicaPool, now: float) -> list[dict[str, Any]]:
    return [
        {
            "role": pool.role,
            "number": replica.number,
            "state": str(replica.state),
            "seconds": now - replica.since,
            "version": None if replica.version == AS_LOADED else replica.version,
            "in_work": replica.pending or None,
            "pid": replica.pid,
            "node": replica.node,
        }
        for replica in list(pool.replicas)
    ]
