"""How close asynchronous training comes to its slower role, and how much faster than synchronous training it is.

    python tests/benchmarks/overlap.py SFT_DIR REWARD_MODEL_DIR [--rounds 2] [--updates 24] [key=value ...]

The directories are those of a finished quickstart. Real runs of the ppo stage in interleaved rounds (synchronous, asynchronous,
asynchronous, synchronous, ...), each role on one thread, a weight sync after every update, no evaluation in between. What a role
takes alone is read from the synchronous runs, where the other one stands still meanwhile: `time/rollout` with `time/scoring`, and
`time/learner`. Reported are ratios of medians over the updates after the first three:

    efficiency = max(rollout alone, learner alone) / asynchronous step       the limit is 1
    speed-up   = synchronous step / asynchronous step                        the limit is (rollout + learner) / max of both
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
_WARM = 3


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sft", type=Path)
    parser.add_argument("reward_model", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=24)
    options, overrides = parser.parse_known_args()
    rows: dict[int, list[dict[str, float]]] = {0: [], 2: []}
    with tempfile.TemporaryDirectory() as output:
        for number in range(options.rounds):
            for staleness in (0, 2) if number % 2 == 0 else (2, 0):
                name = f"round{number}_{staleness}"
                run(options, Path(output), name, staleness, overrides)
                rows[staleness] += logged(Path(output) / name)
    alone = {name: median(rows[0], name) for name in ("time/rollout", "time/scoring", "time/learner", "time/sync")}
    rollout = alone["time/rollout"] + alone["time/scoring"]
    steps = {staleness: median(rows[staleness], "time/step") for staleness in rows}
    print(
        f"alone, seconds an update: rollout and scoring {rollout:.3f}, learner {alone['time/learner']:.3f}, sync",
        end=" ",
    )
    print(f"{alone['time/sync']:.3f}; synchronous step {steps[0]:.3f}, asynchronous step {steps[2]:.3f}")
    print(f"the learner's update takes {median(rows[2], 'time/learner'):.3f} beside the other roles")
    print(
        f"learner waits {median(rows[0], 'time/learner_waiting'):.0%} and {median(rows[2], 'time/learner_waiting'):.0%}"
    )
    print(f"efficiency {max(rollout, alone['time/learner']) / steps[2]:.3f}")
    print(
        f"speed-up {steps[0] / steps[2]:.2f}, limit {(rollout + alone['time/learner']) / max(rollout, alone['time/learner']):.2f}"
    )


def run(options: argparse.Namespace, output: Path, name: str, staleness: int, overrides: list[str]) -> None:
    """One run of the ppo stage."""
    command = [
        sys.executable,
        "-m",
        "rayrlhf.cli.main",
        "run",
        *arguments_of(options, output, name, staleness, overrides),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name} ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def arguments_of(
    options: argparse.Namespace, output: Path, name: str, staleness: int, overrides: list[str]
) -> list[str]:
    """A configuration and what is changed of it: the ppo stage alone, each role on one thread."""
    return [
        *(str(ROOT / "configs" / "quickstart.yaml"), "stages=[ppo]", "model.init=null"),
        *(f"model.path={options.sft.absolute()}", f"output_dir={output}", f"name={name}", "wandb.mode=disabled"),
        f"ppo.rewards=[{{kind: model, path: {options.reward_model.absolute()}, ensemble: mean_std}}]",
        *(f"ppo.max_staleness={staleness}", f"ppo.updates={options.updates}", "ppo.evaluate_every=1000"),
        *(
            "ppo.guard.action=off",
            "checkpoint.every=1000",
            "rollout.threads=1",
            "learner.threads=1",
            "scoring.threads=1",
        ),
        *overrides,
    ]


def logged(run: Path) -> list[dict[str, float]]:
    """The rows of the updates after the warm-up, without the last, which has the final evaluation."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    updates = [row for row in rows if row["stage"] == "ppo" and row["step"] > _WARM]
    return updates[:-1]


def median(rows: list[dict[str, float]], name: str) -> float:
    """Over all updates."""
    return statistics.median(row[name] for row in rows)


if __name__ == "__main__":
    main()
