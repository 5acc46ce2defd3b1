"""The policies the guard may still export: one directory an evaluation that was the best so far."""

import os
import shutil
from pathlib import Path

from rayrlhf.pipelines.folder import RunFolder

_MODELS = ("policy", "critic")


class BestPolicies:
    """`checkpoints/best/step_000040/` with the policy (and critic) of that step.

    A step's directory stays until a checkpoint knows of a better one: a resumed run finds the best policy of the
    checkpoint it goes on from, never one that the killed process found later.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._root = folder.root / "checkpoints" / "best"

    def directories(self, step: int) -> tuple[str, str]:
        """Where the policy and the critic of a step go."""
        policy, critic = (str(self._at(step) / name) for name in _MODELS)
        return policy, critic

    def has(self, step: int) -> bool:
        """Whether the policy of that step is there, whole."""
        return (self._at(step) / "policy" / "config.json").exists()

    def prune(self, best: int | None) -> None:
        """Forget all but the best."""
        for directory in self._root.glob("step_*"):
            if best is None or directory != self._at(best):
                shutil.rmtree(directory)

    def put_in_place(self, step: int) -> None:
        """Make the step's models the stage's output; they stay here too, so that a finished run can be gone on with."""
        for name in _MODELS:
            source, final = self._at(step) / name, self._folder.model_dir(name)
            if not source.exists():
                continue
            partial = final.with_name(f".{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial, copy_function=_link)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)

    def _at(self, step: int) -> Path:
        return self._root / f"step_{step:06d}"


def _link(source: str, target: str) -> None:
    """A second name for a file that nobody writes to again; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
