"""What the object stores of the cluster hold, and whether they overflow to disk."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from ray._private import internal_api, state
from ray.exceptions import RayError

from rayrlhf.telemetry.events import Event

_READ_SECONDS = 5.0
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class StoreUse:
    """Bytes in the object stores of all living nodes, whoever put them there."""

    held: int
    spilled: int
    """Written to disk since the nodes began, because a store was full."""


def read_stores() -> StoreUse | None:
    """Ask Ray; None where it does not answer in time."""
    try:
        reply = internal_api.get_memory_info_reply(state.state, timeout_seconds=_READ_SECONDS)
    except (grpc.RpcError, RayError, AssertionError):
        return None
    stats = reply.store_stats
    return StoreUse(held=int(stats.object_store_bytes_used), spilled=int(stats.spilled_bytes_total))


class StoreWatch:
    """Reads the stores after every update, and tells when they begin to spill, and each time that has doubled."""

    def __init__(self, tell: Callable[[Event], None], read: Callable[[], StoreUse | None] = read_stores) -> None:
        self._tell = tell
        self._read = read
        self._before: int | None = None
        """Bytes that had been spilled when the watch began."""
        self._told = 0

    async def look(self, step: int) -> dict[str, float]:
        """perf/object_store_bytes and perf/spilled_bytes; nothing where Ray does not answer."""
        use = await asyncio.to_thread(self._read)
        if use is None:
            return {}
        if self._before is None:
            self._before = use.spilled
        # What a lost node had spilled is not counted any more.
        spilled = max(0, use.spilled - self._before)
        if spilled >= max(1, 2 * self._told):
            self._told = spilled
            self._tell(
                Event(
                    kind="spill",
                    text=f"The object store overflows: {spilled / _MIB:,.0f} MiB were written to disk so far, which slows the "
                    f"run down; raise cluster.object_store_gib, or --object-store-memory where the nodes were started.",
                    step=step,
                )
            )
        return {"perf/object_store_bytes": float(use.held), "perf/spilled_bytes": float(spilled)}
