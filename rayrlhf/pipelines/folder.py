"""A run's folder: its places, its owner, and what it holds already."""

import fcntl
import json
import shutil
import time
from pathlib import Path
from typing import Any, TextIO

import yaml

from rayrlhf.config import RunConfig
from rayrlhf.errors import CheckpointError, ConfigError

STAGE_OUTPUT = {"sft": "sft", "reward": "reward_model", "ppo": "policy"}
"""The directory whose presence says that a stage is finished: exports appear there in one rename."""


def tracks(config: RunConfig, stage: str) -> list[str]:
    """What a stage trains, each under a name of its own in metrics and checkpoints: the members of an ensemble."""
    members = config.reward.members if stage == "reward" else 1
    return [stage, *(f"{stage}_{member:02d}" for member in range(1, members))]


_FIXED_ON_RESUME = ("seed", "model", "data", "sampling")


class RunFolder:
    """`output_dir/name`, owned by one driver at a time."""

    def __init__(self, config: RunConfig) -> None:
        self.root = Path(config.output_dir).absolute() / config.name
        self._lock: TextIO | None = None

    def claim(self) -> None:
        """Make the folder and lock it until this process ends; CheckpointError if another driver holds it."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.root / ".lock", "w")  # noqa: SIM115 - held for the life of the process
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"Another run is writing to {self.root}: wait for it, or give this one another name."
            ) from None

    def set_aside(self) -> Path | None:
        """Move an earlier run out of the way, so that nothing of it is lost; where to, or None if there was none."""
        if not (self.root / "config.yaml").exists():
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S")
        aside = self.root.with_name(f"{self.root.name}.before-{stamp}")
        self.root.rename(aside)
        return aside

    def clear_stage(self, stage: str) -> None:
        """Remove what an earlier start of one stage left, so that it starts anew."""
        outputs = [self.model_dir(STAGE_OUTPUT[stage]), *([self.model_dir("critic")] if stage == "ppo" else [])]
        if stage == "reward":
            outputs += [*self.root.glob("checkpoints/reward*")]
        for directory in (*outputs, self.checkpoints(stage)):
            if stage == "ppo" and directory == self.checkpoints("ppo"):
                for kept in (*directory.glob("step_*"), *directory.glob("best")):
                    shutil.rmtree(kept)
            else:
                shutil.rmtree(directory, ignore_errors=True)

    def model_dir(self, name: str) -> Path:
        """Directory of an exported model."""
        return self.root / name

    def checkpoints(self, track: str) -> Path:
        """Where the checkpoints of a stage, or of one member of it, lie."""
        return self.root / "checkpoints" if track == "ppo" else self.root / "checkpoints" / track

    def candidate(self, track: str) -> Path:
        """Where the best model of a stage or member lies until the stage is finished."""
        return self.root / "checkpoints" / f"{track}.best"

    def trained(self, track: str) -> Path:
        """Where a trained member lies until the others are trained too."""
        return self.root / "checkpoints" / f"{track}.trained"

    def finished(self, stage: str) -> bool:
        """Whether the stage's export is there."""
        return (self.model_dir(STAGE_OUTPUT[stage]) / "config.json").exists()

    def save_config(self, config: RunConfig) -> None:
        """Write the resolved configuration."""
        self.root.joinpath("config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    def changed_since(self, config: RunConfig) -> list[str]:
        """Keys that differ from the folder's own configuration; ConfigError if one is fixed for a resumed run."""
        path = self.root / "config.yaml"
        if not path.exists():
            return []
        old, new = _flatten(yaml.safe_load(path.read_text())), _flatten(config.model_dump(mode="json"))
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        fixed = [key for key in changed if key.split(".")[0] in _FIXED_ON_RESUME]
        if fixed:
            key = fixed[0]
            raise ConfigError(
                f"{key} was {old.get(key)!r} when {self.root} was started and is {new.get(key)!r} now: a resumed run "
                f"keeps its {', '.join(_FIXED_ON_RESUME)}; give a new run another name."
            )
        return changed

    def read_summary(self) -> dict[str, Any]:
        """The summary so far; empty where there is none."""
        path = self.root / "summary.json"
        loaded: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return loaded


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
