"""summary.json: the run's facts, replaced in one rename."""

import json
import os
from pathlib import Path
from typing import Any


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Write the facts so far."""
    partial = run_dir / ".summary.json.partial"
    partial.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(partial, run_dir / "summary.json")
