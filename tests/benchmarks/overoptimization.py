"""One reward model against an ensemble of four, learnt from the same preferences with a quarter of their labels flipped.

    python tests/benchmarks/overoptimization.py OUTPUT_DIR [--seeds 0 1 2] [--penalty 2.0] [key.sub=value ...]

For each seed the quickstart's SFT policy and four reward models on bootstrap samples; then PPO twice under the same
pull to the reference, against the first of them alone and against all four with their disagreement subtracted, either
reward in standard deviations of its own scores. Overrides go to every run.
Prints what is left of the gold gained at the peak, and draws gold and proxy against sqrt(KL): overoptimization.svg.
Finished runs in OUTPUT_DIR are read, not repeated.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rayrlhf.reward.stats import load_stats

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "quickstart.yaml")
ARMS = {"single": "#2a6fdb", "ensemble": "#c08400"}


def rayrlhf(*arguments: str) -> None:
    """Run the command; its failure ends the benchmark."""
    subprocess.run([sys.executable, "-m", "rayrlhf.cli.main", *arguments], check=True, cwd=ROOT)


def finished(run: Path, stage: str) -> bool:
    """Whether a run's stage is there already."""
    summary = run / "summary.json"
    return summary.exists() and stage in json.loads(summary.read_text())["stages"]


def train(output: Path, seed: int, options: argparse.Namespace) -> None:
    """The models of a seed and both arms."""
    common = [*options.overrides, f"seed={seed}", f"output_dir={output}", "data.task.label_noise=0.25"]
    base = output / f"models_{seed}"
    if not finished(base, "reward"):
        models = ["stages=[sft,reward]", "reward.members=4", f"data.task.preferences={options.preferences}"]
        rayrlhf("run", CONFIG, *common, *models, f"name={base.name}")
    alone = base / "single"
    if not alone.exists():
        shutil.copytree(base / "reward_model", alone, ignore=shutil.ignore_patterns("members"))
        _forget_members(alone)
    for arm in ARMS:
        run = output / f"{arm}_{seed}"
        if finished(run, "ppo"):
            continue
        reward = (
            f"{{kind: model, path: {alone}, weight: {1.0 / load_stats(alone).scale.std}}}"
            if arm == "single"
            else f"{{kind: model, path: {base / 'reward_model'}, ensemble: mean_std, penalty: {options.penalty}}}"
        )
        ppo = [
            "stages=[ppo]",
            "model.init=null",
            f"model.path={base / 'sft'}",
            f"ppo.rewards=[{reward}]",
            f"ppo.updates={options.updates}",
            f"ppo.kl.coef={options.kl}",
            "ppo.evaluate_prompts=128",
        ]
        rayrlhf("run", CONFIG, *common, *ppo, f"name={run.name}")


def _forget_members(directory: Path) -> None:
    """The sidecar of the first model alone."""
    path = directory / "reward_stats.json"
    stats = json.loads(path.read_text())
    path.write_text(json.dumps(stats | {"scale": stats["members"][0], "members": stats["members"][:1]}))


def course(run: Path) -> np.ndarray:
    """[evaluations, 4]: step, sqrt(KL), gold and proxy."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["stage"] == "ppo" and row.get("eval/gold") is not None]
    return np.array([[r["step"], max(r["eval/kl"], 0.0) ** 0.5, r["eval/gold"], r["eval/score"]] for r in kept])


def figures(courses: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Of each arm and seed gold at its start, peak and end, and the share of the gain that is left."""
    found = {}
    for arm, runs in courses.items():
        gold = np.array([run[:, 2] for run in runs])
        gained, kept = gold.max(axis=1) - gold[:, 0], gold[:, -1] - gold[:, 0]
        found[arm] = {
            "gold_start": gold[:, 0].tolist(),
            "gold_peak": gold.max(axis=1).tolist(),
            "gold_end": gold[:, -1].tolist(),
            "kept": (kept / gained).tolist(),
            "mean_kept": float((kept / gained).mean()),
            "kl_end": [float(run[-1, 1] ** 2) for run in runs],
        }
    return found


def draw(courses: dict[str, list[np.ndarray]], path: Path) -> None:
    """Gold and proxy against sqrt(KL), a thin line a seed and arm."""
    with mpl.rc_context(
        {"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}
    ):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        for axis, column, label in zip(figure.subplots(1, 2), (2, 3), ("gold: true reward", "proxy"), strict=True):
            for arm, runs in courses.items():
                for number, run in enumerate(runs):
                    y = run[:, column] if column == 2 else (run[:, column] - run[0, column]) / run[:, column].std()
                    name = (
                        None if number else {"single": "one reward model", "ensemble": "four, less their spread"}[arm]
                    )
                    axis.plot(
                        run[:, 1], y, color=ARMS[arm], label=name, marker="o", markersize=3, linewidth=1.3, alpha=0.8
                    )
            axis.set_xlabel("√KL to the reference, √nats per response")
            axis.set_ylabel(label if column == 2 else "proxy: gain, in its own spread")
            axis.grid(color="#e3e7ef")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--preferences", type=int, default=24000)
    parser.add_argument("--penalty", type=float, default=2.0)
    parser.add_argument("--kl", type=float, default=0.06)
    options = parser.parse_args()
    output = options.output.absolute()
    for seed in options.seeds:
        train(output, seed, options)
    courses = {arm: [course(output / f"{arm}_{seed}") for seed in options.seeds] for arm in ARMS}
    draw(courses, output / "overoptimization.svg")
    print(json.dumps(figures(courses), indent=1))


if __name__ == "__main__":
    main()
