"""Configurations of runs on files that a test wrote."""

import json
from pathlib import Path
from typing import Any

from rayrlhf.config import RunConfig, load_config

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


def config(root: Path, *overrides: str, **sources: dict[str, Any]) -> RunConfig:
    given = [f"data.{name}={json.dumps(source)}" for name, source in sources.items()]
    stages = {"demonstrations": "sft", "preferences": "reward", "prompts": "ppo"}
    ordered = [stages[name] for name in stages if name in sources]
    return load_config(
        QUICKSTART, ["data.task=null", f"data.root={root}", f"stages={json.dumps(ordered)}", *given, *overrides]
    )
