"""Whether a reward function can be imported, tried in a process of its own: somebody else's module may exit or hang."""

import importlib
import inspect
import subprocess
import sys

from rayrlhf.errors import ConfigError

_REFUSED = 3
"""Exit status of the child that has said why; no status of Python's own."""


def check_importable(target: str, *, timeout: float) -> None:
    """ConfigError unless `package.module:function` is there and takes a prompt, a response and a reference.

    The module runs in a child process, which has `timeout` seconds: what it does at import stays there.
    """
    command = [sys.executable, "-m", __name__, target]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"The module of the reward function {target} is not imported after {timeout:.0f} s: let it do at its first call "
            f"what takes long, or raise scoring.start_timeout, of which this is a fifth."
        ) from None
    told = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode == _REFUSED:
        raise ConfigError(f"The reward function {target} cannot be used: {told[-1]}.")
    if done.returncode < 0:
        raise ConfigError(f"The import of the reward function {target} ended its process by signal {-done.returncode}.")
    if not done.stdout.decode(errors="replace").endswith(_DONE):
        raise ConfigError(
            f"The import of the reward function {target} ended its process with exit status {done.returncode}: its module "
            f"must not exit."
        )


_DONE = "\nimported\n"


def _try(target: str) -> str | None:
    """Why the function cannot be used; None where it can."""
    module, _, name = target.partition(":")
    try:
        found = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - somebody else's module: whatever it raises is the reason
        return f"importing {module} raised {type(error).__name__}: {' '.join(str(error).split())}".rstrip(".")
    function = getattr(found, name, None)
    if function is None:
        return f"the module {module} has no {name}"
    if not callable(function):
        return f"it is {type(function).__name__}, not a function"
    try:
        inspect.signature(function).bind("prompt", "response", None)
    except TypeError as error:
        return f"it does not take a prompt, a response and a reference ({error})"
    except ValueError:
        pass  # A function in C need not have a signature.
    return None


if __name__ == "__main__":
    reason = _try(sys.argv[1])
    if reason is not None:
        print(f"\n{reason}", file=sys.stderr)
        sys.exit(_REFUSED)
    sys.stdout.write(_DONE)
    sys.stdout.flush()
