"""SIGTERM in the foreground, and in a background command, which ignores Ctrl-C."""

import signal
import subprocess
import sys

import pytest

WAITING = """
import asyncio, signal, sys
from rayrlhf.actors.cluster import obey_termination
signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[1] == "background" else signal.default_int_handler)
obey_termination()

async def wait():
    try:
        print("waiting", flush=True)
        await asyncio.sleep(60)
    finally:
        print("unwound", flush=True)

try:
    asyncio.run(wait())
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("where", ["foreground", "background"])
def test_termination_unwinds_the_loop(where: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITING, where], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == "unwound\ninterrupted\n"
    finally:
        process.kill()
