"""Shapes and dtypes of the maths are checked while the tests run; nothing here reaches out to a network."""

import os
import signal

from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as cores: threads that wait for each other across them would stand still.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background commands with Ctrl-C ignored, and the commands these tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

install_import_hook("rayrlhf.algorithms", "beartype.beartype")
