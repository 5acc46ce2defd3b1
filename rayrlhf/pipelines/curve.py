"""Whether more labels would help: reward models trained on growing shares of the same preferences."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayrlhf.config import RunConfig
from rayrlhf.data.prepared import open_preferences
from rayrlhf.errors import ConfigError
from rayrlhf.files import write_json
from rayrlhf.pipelines.folder import STAGE_OUTPUT
from rayrlhf.pipelines.run import run_stages
from rayrlhf.reward.judge import EVALUATION_FILE

CURVE_FILE = "learning_curve.json"
_KEPT = ("pairs", "accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy", "longer_accuracy", "nll", "ece")


def learning_curve(
    config: RunConfig, shares: Sequence[float], *, resume: bool, arguments: Sequence[str] | None = None
) -> tuple[Path, list[dict[str, Any]]]:
    """A reward stage for each share, each in a run of its own, all judged by the same held-out preferences.

    The larger shares hold the smaller. With `resume`, shares that are finished are read and the broken one goes on.
    Answers with the folder that holds learning_curve.json, and its points.
    """
    if not shares or not all(0.0 < share <= 1.0 for share in shares):
        raise ConfigError(f"The shares {', '.join(f'{share:g}' for share in shares)} must lie above 0 and up to 1.")
    rows = len(open_preferences(config).train)
    points = []
    for share in sorted(set(shares)):
        root = _train(config, share, resume=resume, arguments=arguments)
        found = json.loads((root / STAGE_OUTPUT["reward"] / EVALUATION_FILE).read_text())
        points.append({"share": share, "rows": round(share * rows)} | {name: found.get(name) for name in _KEPT})
    folder = Path(config.output_dir) / f"{config.name}-curve"
    write_json(folder / CURVE_FILE, points)
    return folder, points


def _train(config: RunConfig, share: float, *, resume: bool, arguments: Sequence[str] | None) -> Path:
    reward = config.reward.model_copy(update={"train_share": share})
    part = config.model_copy(update={"name": f"{config.name}-share-{share:g}", "reward": reward})
    begun = (Path(part.output_dir) / part.name / "config.yaml").exists()
    return run_stages(part, resume=resume and begun, only="reward", arguments=arguments)
