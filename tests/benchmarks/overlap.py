"""How close asynchronous training comes to its slower role, and how much faster than synchronous training it is.

    python tests/benchmarks/overlap.py SFT_DIR REWARD_MODEL_DIR [--rounds 2] [--updates 24] [key=value ...]

The directories are those of a finished quickstart. Real runs of the ppo stage in interleaved rounds (synchronous, asynchronous,
asynchronous, synchronous, ...), each role on one thread, a weight sync after every update, no evaluation in between. What a role
takes alone is read from the synchronous runs, where the other one stands still meanwhile: `time/rollout` with `time/scoring`, and
`time/learner`. Reported are ratios of medians over the updates after the first three:

    efficiency = max(rollout alone, learner alone) / asynchronous step       the limit is 1
    speed-up   = synchronous step / asynchronous step                        the limit is (rollout + learner) / max of both

With `--bind`, every round has a third run: asynchronous, the learner on a core of its own and all other roles on the rest.

Cores share caches, memory bandwidth and clock: two processes that know nothing of each other slow each other too. How much is
measured last: a bare learner repeats the update of a batch, in turns with a bare vLLM stopped and drawing beside it, one thread
each. The efficiency is given with that allowed for as well.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
_WARM = 3

ENGINE = """
import os
os.nice({niceness})
from rayrlhf.config import load_config
config = load_config({config!r}, {overrides!r})
from rayrlhf.rollout.environment import engine_environment, runs_eagerly
os.environ.update(engine_environment(config.rollout, device="cpu"))
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
from vllm import LLM, SamplingParams
llm = LLM(
    model={model!r},
    skip_tokenizer_init=True,
    dtype="float32",
    max_model_len=config.model.max_length,
    enable_chunked_prefill=False,
    enforce_eager=runs_eagerly(config.rollout, device="cpu"),
    max_num_seqs=config.rollout.max_num_seqs,
    kv_cache_memory_bytes=int(config.rollout.kv_cache_gib * 2**30),
)
llm.generate([{{"prompt_token_ids": [5, 6, 7]}}], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
"""
"""A vLLM by itself, with the settings of a run, that has drawn its first token."""

DRAWING = """
print("drawing", flush=True)
while True:
    llm.generate(
        [{{"prompt_token_ids": [5, 6, 7]}}] * config.ppo.samples_per_step,
        SamplingParams(max_tokens=config.sampling.max_new_tokens, detokenize=False),
        use_tqdm=False,
    )
"""

LEARNING = """
import sys, time
from pathlib import Path
import torch
from rayrlhf.config import load_config
from rayrlhf.experience.spool import read_batch
from rayrlhf.learner.build import build_ppo
from rayrlhf.learner.process_group import Ranks
config = load_config({config!r}, {overrides!r})
torch.set_num_threads(config.learner.compute_threads)
learner = build_ppo(config, policy_dir={model!r}, reward_model_dir={reward_model!r}, ranks=Ranks(0, 1))
batch = read_batch(Path({batch!r}))
step = 0
for _ in sys.stdin:
    begun = time.perf_counter()
    learner.update(step, batch)
    print(time.perf_counter() - begun, flush=True)
    step += 1
"""


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sft", type=Path)
    parser.add_argument("reward_model", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--bind", action="store_true")
    options, overrides = parser.parse_known_args()
    settings: dict[str, tuple[int, list[str]]] = {"synchronous": (0, []), "asynchronous": (2, [])} | (
        {"bound": (2, bound())} if options.bind else {}
    )
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    with tempfile.TemporaryDirectory() as output:
        for number in range(options.rounds):
            for setting in list(settings) if number % 2 == 0 else reversed(settings):
                name, (staleness, keys) = f"round{number}_{setting}", settings[setting]
                run(options, Path(output), name, staleness, [*keys, *overrides])
                rows[setting] += logged(Path(output) / name)
        slower = slowed_by_a_neighbour(options, Path(output), overrides)
    report(rows, slower)


def bound() -> list[str]:
    """The learner on the last core of this machine, the other roles on the rest."""
    *others, last = sorted(os.sched_getaffinity(0))
    return [f"learner.cores=[{last}]", f"rollout.cores={others}", f"scoring.cores={others}"]


def report(rows: dict[str, list[dict[str, float]]], slower: float) -> None:
    """Print the ratios; `slower` is what two bare processes slow each other."""
    names = ("time/rollout", "time/scoring", "time/learner", "time/sync", "time/step")
    rollout, scoring, learner, sync, step = (median(rows["synchronous"], name) for name in names)
    rollout += scoring
    print(f"alone, seconds an update: rollout and scoring {rollout:.3f}, learner {learner:.3f}, sync {sync:.3f}")
    print(f"synchronous step {step:.3f}, learner waits {median(rows['synchronous'], 'time/learner_waiting'):.0%}")
    print(f"limit of the speed-up {(rollout + learner) / max(rollout, learner):.2f}")
    for setting, values in rows.items():
        if setting == "synchronous":
            continue
        taken = median(values, "time/step")
        print(
            f"{setting}: step {taken:.3f}, of it the learner's update {median(values, 'time/learner'):.3f},"
            f" learner waits {median(values, 'time/learner_waiting'):.0%}"
        )
        print(
            f"    efficiency {max(rollout, learner) / taken:.3f},"
            f" {max(rollout, learner * slower) / taken:.3f} with what two bare processes slow each other;"
            f" speed-up {step / taken:.2f}"
        )


def slowed_by_a_neighbour(options: argparse.Namespace, output: Path, overrides: list[str], turns: int = 4) -> float:
    """A bare learner's update beside a vLLM that draws, over one beside a vLLM that is stopped: a ratio of medians."""
    batch = spooled_batch(options, output, overrides)
    own = arguments_of(options, output, "bare", 2, overrides)
    facts = {
        "config": own[0],
        "overrides": own[1:],
        "model": str(options.sft.absolute()),
        "reward_model": str(options.reward_model.absolute()),
        "batch": str(batch),
        "niceness": 0,
    }
    drawing = bare((ENGINE + DRAWING).format(**facts))
    learning = bare(LEARNING.format(**facts))
    seconds: dict[str, list[float]] = {"alone": [], "beside": []}
    try:
        while "drawing" not in read(drawing):
            pass
        update(learning)
        for turn in range(2 * turns):
            beside = turn % 4 in (1, 2)  # ABBA
            drawing.send_signal(signal.SIGCONT if beside else signal.SIGSTOP)
            seconds["beside" if beside else "alone"] += [update(learning) for _ in range(3)]
    finally:
        drawing.kill()
        learning.kill()
    alone, beside_it = (statistics.median(values) for values in seconds.values())
    print(f"a bare learner's update takes {alone:.3f} s alone and {beside_it:.3f} s beside a bare vLLM that draws")
    return beside_it / alone


def spooled_batch(options: argparse.Namespace, output: Path, overrides: list[str]) -> Path:
    """A batch of a run that is ended after a few updates, before a checkpoint has made it needless."""
    command = [sys.executable, "-m", "rayrlhf.cli.main", "run", *arguments_of(options, output, "spooled", 2, overrides)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    batch = output / "spooled" / "experience" / "update_000004.batch"
    deadline = time.monotonic() + 300.0
    while not batch.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"no batch: the run ended with status {process.poll()}, or 300 s went by")
        time.sleep(0.2)
    process.terminate()
    process.wait(timeout=120)
    return batch


def bare(source: str) -> "subprocess.Popen[str]":
    """A process of its own, on one thread."""
    return subprocess.Popen(
        [sys.executable, "-c", source],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def update(learning: "subprocess.Popen[str]") -> float:
    """Seconds of one update."""
    assert learning.stdin is not None
    print(file=learning.stdin, flush=True)
    while True:
        try:
            return float(read(learning))
        except ValueError:
            continue


def read(process: "subprocess.Popen[str]") -> str:
    """The next line of what a process tells."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit(f"a bare process ended with status {process.wait()}")
    return line


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
