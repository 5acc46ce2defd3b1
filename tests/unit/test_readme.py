"""The README's tree is the tree on disk."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_annotated_tree_names_every_file_and_nothing_else() -> None:
    block = re.search(r"```\n(rayrlhf/\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    folder = Path()
    named = set()
    for line in block[1].splitlines():
        name = line.split()[0]
        if name.endswith("/"):
            folder = Path("rayrlhf") / name if line.startswith("  ") else Path(name)
        else:
            named.add((folder if line.startswith("    ") else Path("rayrlhf")) / name)
        assert len(line.split()) > 1 or name == "rayrlhf/", f"{name} has no annotation"
    disk = {p.relative_to(ROOT) for p in (ROOT / "rayrlhf").rglob("*") if p.suffix in (".py", ".html")}
    assert named == {p for p in disk if p.name != "__init__.py"}


def test_every_declared_area_of_metrics_is_described() -> None:
    from rayrlhf.telemetry.metrics import METRICS

    text = (ROOT / "README.md").read_text()
    areas = {name.split("/")[0] for name in METRICS}
    assert {area for area in areas if f"`{area}/" not in text} == {"optim"}
