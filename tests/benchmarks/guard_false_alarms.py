"""How often the guard trips where nothing is over-optimised: PPO rewarded by the built-in task's gold itself.

    python tests/benchmarks/guard_false_alarms.py OUTPUT_DIR [key.sub=value ...] [--seeds 0 1 ... 9]

For each seed the quickstart's SFT policy, then PPO with gold as its reward, so that the judge and what is optimised are
one and every trip is a false alarm. Prints each run's evaluations, trips and largest fall below the peak in standard
errors, and the rate with its 95 % interval (Wilson 1927). Finished runs in OUTPUT_DIR are read, not repeated.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "quickstart.yaml")
REWARD = '[{kind: function, target: "guard_false_alarms:gold_of"}]'


def gold_of(prompt: str, response: str, reference: str | None) -> float:
    """The task's gold reward as a reward function."""
    from rayrlhf.data.innkeeper import gold

    return gold(prompt, response)


def train(run: Path, seed: int, overrides: list[str]) -> None:
    """SFT and PPO of one seed; a failure ends the benchmark."""
    summary = run / "summary.json"
    if summary.exists() and "ppo" in json.loads(summary.read_text())["stages"]:
        return
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    options = [
        "stages=[sft,ppo]",
        f"seed={seed}",
        f"ppo.rewards={REWARD}",
        "ppo.evaluate_every=5",
        "wandb.mode=disabled",
    ]
    command = [sys.executable, "-m", "rayrlhf.cli.main", "run", CONFIG, *options, *overrides]
    place = [f"output_dir={run.parent}", f"name={run.name}"]
    subprocess.run([*command, *place], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})


def read(run: Path) -> tuple[int, int, float, str]:
    """Evaluations, trips, the largest fall below the peak in standard errors, and gold from first to last."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = [row for row in rows if row["stage"] == "ppo" and row.get("guard/judge") is not None]
    trips = json.loads((run / "summary.json").read_text())["stages"]["ppo"]["guard_trips"]
    golds = f"{judged[0]['guard/judge']:.3f} -> {judged[-1]['guard/judge']:.3f}"
    return len(judged), trips, max(row["guard/below_peak"] for row in judged), golds


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a rate."""
    centre, spread = hits + z * z / 2.0, z * math.sqrt(hits * (n - hits) / n + z * z / 4.0)
    return (centre - spread) / (n + z * z), (centre + spread) / (n + z * z)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    tripped = 0
    for seed in options.seeds:
        run = options.output.absolute() / f"gold_{seed}"
        train(run, seed, options.overrides)
        evaluations, trips, fall, golds = read(run)
        tripped += trips > 0
        print(
            f"seed {seed}: gold {golds}, {evaluations} evaluations, {trips} trips, largest fall {fall:.1f} errors",
            flush=True,
        )
    n = len(options.seeds)
    low, high = wilson(tripped, n)
    print(f"{tripped} of {n} runs tripped: {tripped / n:.0%} (95 % interval {low:.0%} to {high:.0%})")


if __name__ == "__main__":
    main()
