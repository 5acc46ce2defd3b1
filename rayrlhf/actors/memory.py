"""What the processes of a run take on the nodes of a cluster it has joined, where they are no children of the driver."""

import os
from typing import Any

import ray
from ray.exceptions import RayError

from rayrlhf.actors.placement import clerk_options, end, spawn
from rayrlhf.telemetry.memory import bytes_below

_JOB_VARIABLE = "RAY_JOB_ID"
"""What Ray starts every worker of a job with."""
_TIMEOUT = 10.0


class NodeMemoryActor:
    """Reads the memory of one node."""

    def job_bytes(self, job_id: str) -> int:
        """Bytes in use by the job's processes here: children of the node's raylet, as this one is."""
        return bytes_below(os.getppid(), _JOB_VARIABLE, job_id)


class ClusterMemory:
    """Bytes in use by the processes of this job on every node; called from one thread.

    A node that does not answer in time, or is lost, counts as nothing in that sample: a figure to be watched is no reason
    to end a run.
    """

    def __init__(self) -> None:
        self._job_id = str(ray.get_runtime_context().get_job_id())
        self._actors: dict[str, Any] = {}

    def __call__(self) -> int:
        try:
            nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            for gone in self._actors.keys() - nodes:
                del self._actors[gone]
            for node in nodes - self._actors.keys():
                self._actors[node] = spawn(NodeMemoryActor, clerk_options(node))
            asked = {actor.job_bytes.remote(self._job_id): node for node, actor in self._actors.items()}
            answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_TIMEOUT)
        except RayError:
            return 0
        return sum(self._answer(ref, asked[ref]) for ref in answered)

    def _answer(self, ref: Any, node: str) -> int:
        try:
            return int(ray.get(ref))
        except RayError:
            end(self._actors.pop(node))
            return 0
