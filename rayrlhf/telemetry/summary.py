"""summary.json: the run's facts, replaced in one rename."""

import json
from pathlib import Path
from typing import Any

from rayrlhf.files import write_whole


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Write the facts so far."""
    write_whole(run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
