"""A run's folder: its places, and what it holds already."""

import json
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from rayrlhf.config import RunConfig
from rayrlhf.files import write_json, write_whole
from rayrlhf.telemetry.account import forget_stage

STAGE_OUTPUT = {"sft": "sft", "reward": "reward_model", "ppo": "policy"}
"""The directory whose presence says that a stage is finished: exports appear there in one rename."""

WANDB_FILE = "wandb_run_id"


def tracks(config: RunConfig, stage: str) -> list[str]:
    """What a stage trains, each under a name of its own in metrics and checkpoints: the members of an ensemble."""
    members = config.reward.members if stage == "reward" else 1
    return [stage, *(f"{stage}_{member:02d}" for member in range(1, members))]


class RunFolder:
    """`output_dir/name`; who may write to it, `claim.py` decides."""

    def __init__(self, config: RunConfig) -> None:
        self.root = Path(config.output_dir).absolute() / config.name

    def set_aside(self) -> Path | None:
        """Move an earlier run out of the way, so that nothing of it is lost; where to, or None if there was none."""
        if not (self.root / "config.yaml").exists():
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S")
        aside = self.root.with_name(f"{self.root.name}.before-{stamp}")
        self.root.rename(aside)
        return aside

    def clear_stage(self, stage: str) -> None:
        """Remove what an earlier start of one stage left, what it cost included, so that it starts anew."""
        forget_stage(self.root, stage)
        outputs = [self.model_dir(STAGE_OUTPUT[stage])]
        if stage == "ppo":
            outputs += [self.model_dir("critic"), self.spool]
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

    @property
    def spool(self) -> Path:
        """Where the batches since the last checkpoint of the ppo stage lie."""
        return self.root / "experience"

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
        """Write the resolved configuration, in one rename."""
        write_whole(self.root / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    def save_data_account(self, found: dict[Any, dict[str, Any]]) -> None:
        """Write, or add to, what was found in each stage's data: data.json."""
        path = self.root / "data.json"
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, known | found)

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration, key by key with dots; empty where there is none."""
        path = self.root / "config.yaml"
        return flatten(yaml.safe_load(path.read_text())) if path.exists() else {}

    def wandb_run_id(self) -> str | None:
        """The one W&B run of this training; None where there is none."""
        path = self.root / WANDB_FILE
        return path.read_text().strip() or None if path.exists() else None

    def begin_wandb_run(self, *, enabled: bool) -> None:
        """Give the training a W&B run of its own, known before anything is logged; none where it is not enabled."""
        path = self.root / WANDB_FILE
        if enabled:
            write_whole(path, f"{secrets.token_hex(4)}\n")
        else:
            path.unlink(missing_ok=True)

    def read_summary(self) -> dict[str, Any]:
        """The summary so far; empty where there is none."""
        path = self.root / "summary.json"
        loaded: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return loaded


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every leaf of a configuration by its key with dots; the items of a list of sections by their number."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
