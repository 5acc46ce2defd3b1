import socket

from learner_lab import ALONE

from rayrlhf.learner.process_group import (
    all_reduce_max,
    all_reduce_sum,
    free_address,
    gather_objects,
    init_process_group,
)


def test_one_rank_makes_no_group() -> None:
    import torch.distributed as dist

    address = free_address("127.0.0.1")
    init_process_group(ALONE, init_method=f"tcp://{address}", device="cpu", timeout=0.1)
    assert not dist.is_initialized()
    assert all_reduce_sum([1.5, -2.0], ALONE) == [1.5, -2.0]
    assert all_reduce_max(3.25, ALONE) == 3.25
    host, _, port = address.rpartition(":")
    with socket.socket() as released:
        released.bind((host, int(port)))
    assert gather_objects({"a": 1}, ALONE) == [{"a": 1}]


def test_an_address_stays_reserved() -> None:
    """Nobody else can bind the port between its choice and its use."""
    host, _, port = free_address("127.0.0.1").rpartition(":")
    other = socket.socket()
    try:
        other.bind((host, int(port)))
    except OSError:
        return
    finally:
        other.close()
    raise AssertionError("the port was free for somebody else")
