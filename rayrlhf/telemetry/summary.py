"""summary.json: the run's facts, replaced in one rename."""

from pathlib import Path
from typing import Any

from rayrlhf.files import write_json


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Write the facts so far."""
    write_json(run_dir / "summary.json", summary)
