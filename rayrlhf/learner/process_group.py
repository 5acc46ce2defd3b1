"""The ranks of a learner and the few numbers they exchange beside their shards; with one rank, nothing happens here."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""By device. Numbers and objects travel between CPUs on both; NCCL carries the shards."""

_reserved: dict[str, socket.socket] = {}
"""Addresses this process keeps bound until its process group takes them over, so that nobody else can."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many learner processes this is."""

    rank: int
    world: int

    @property
    def first(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0


def free_address(host: str) -> str:
    """A "host:port" of this machine, which stays bound until this process joins a group there."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((host, 0))
    address = f"{host}:{listener.getsockname()[1]}"
    _reserved[address] = listener
    return address


def init_process_group(ranks: Ranks, *, init_method: str, device: str, timeout: float) -> None:
    """Meet the other ranks at `init_method` ("tcp://host:port" of rank 0); no wait is longer than `timeout` s."""
    address = init_method.removeprefix("tcp://")
    host, _, port = address.rpartition(":")
    listener = _reserved.pop(address, None) if ranks.first else None
    if ranks.world == 1:
        if listener is not None:
            listener.close()
        return
    if listener is not None:
        listener.listen()
    limit = timedelta(seconds=timeout)
    store = dist.TCPStore(
        host,
        int(port),
        ranks.world,
        is_master=ranks.first,
        timeout=limit,
        master_listen_fd=None if listener is None else listener.detach(),
    )
    dist.init_process_group(_BACKENDS[device], store=store, rank=ranks.rank, world_size=ranks.world, timeout=limit)


def all_reduce_sum(values: Sequence[float], ranks: Ranks) -> list[float]:
    """The sum over ranks of each value."""
    tensor = torch.tensor(values, dtype=torch.float64)
    if ranks.world > 1:
        dist.all_reduce(tensor)
    total: list[float] = tensor.tolist()
    return total


def all_reduce_max(value: float, ranks: Ranks) -> float:
    """The largest over ranks."""
    tensor = torch.tensor(value, dtype=torch.float64)
    if ranks.world > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)


def gather_objects(value: T, ranks: Ranks) -> list[T]:
    """Every rank's value, on every rank."""
    if ranks.world == 1:
        return [value]
    values: list[T] = [value] * ranks.world
    dist.all_gather_object(values, value)
    return values
