"""What many rows cost: the start of a reward stage, its driver and its learner, by the number of pairs.

    python tests/benchmarks/large_data.py [--rows 3000 30000 300000] [--steps 30] [--folder DIR]

For each number of rows a file of made-up pairs is written (prompts of 10 to 60 words, responses of 10 to 90) and a start is
made twice, first with an empty cache: what the driver does with data before a run (it has it read, and tells of it), what is
done before the learner starts (tokens, in as many processes as there are cores), and the learner itself, each in a process of
its own. The model is tiny, so that what is seen is the data. Printed are, as JSON, seconds; seconds of CPU with those of the
processes it started; the peak resident memory of a process by itself (`peak_mib`) and of the largest process it started
(`children_peak_mib`, no less than its own when that started); of the learner after its steps also what is its own alone
(`own_mib`), since pages of a file that is memory-mapped are the system's to take back.
"""

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from rayrlhf.config import RunConfig, parse_config

INIT = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
SYLLABLES = [a + b for a in "bdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]


def write_pairs(path: Path, rows: int) -> None:
    """Pairs of which the chosen response is the politer one."""
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(20_000)]

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(low, high)))

    with path.open("w") as file:
        for _ in range(rows):
            pair = {
                "prompt": text(10, 60) + "?",
                "chosen": f" Please {text(10, 90)}.",
                "rejected": f" No {text(10, 90)}.",
            }
            file.write(json.dumps(pair) + "\n")


def configuration(folder: Path, path: Path) -> RunConfig:
    return parse_config(
        {
            "name": "benchmark",
            "device": "cpu",
            "output_dir": str(folder / "runs"),
            "stages": ["reward"],
            "model": {"path": str(folder / "model"), "max_length": 512},
            "data": {
                "root": str(folder),
                "cache": str(folder / f"cache-{path.stem}"),
                "preferences": {"path": path.name, "format": "preferences"},
                "heldout_fraction": 0.02,
            },
            "reward": {"prompts_per_step": 16, "micro_batch_tokens": 8192},
        }
    )


def make_model(folder: Path) -> dict[str, Any]:
    from rayrlhf.data.tokenizer import train_tokenizer
    from rayrlhf.models.export import export_model
    from rayrlhf.models.load import make_policy

    write_pairs(folder / "few.jsonl", 2000)
    tokenizer = train_tokenizer([(folder / "few.jsonl").read_text()], vocab_size=4096)
    export_model(make_policy(INIT, tokenizer, seed=0), tokenizer, folder / "model")
    return {}


def driver(config: RunConfig) -> dict[str, Any]:
    """What a driver does with data before a run."""
    from rayrlhf.pipelines.data_checks import DataCheck

    begun = time.perf_counter()
    found = DataCheck(config=config, policy_dir=None).run()["reward"]
    return {"seconds": time.perf_counter() - begun, "told": found.told[:2]}


def encoding(config: RunConfig) -> dict[str, Any]:
    """What is done before a learner starts."""
    from rayrlhf.data.encoded import encoded_preferences

    begun = time.perf_counter()
    rows = len(encoded_preferences(config, str(config.model.path)).train)
    return {"seconds": time.perf_counter() - begun, "rows": rows}


def learner(config: RunConfig, steps: int) -> dict[str, Any]:
    """A learner that trains and evaluates."""
    from rayrlhf.learner.build import build_reward
    from rayrlhf.learner.process_group import Ranks

    begun = time.perf_counter()
    made = build_reward(config, base_dir=str(config.model.path), ranks=Ranks(rank=0, world=1))
    built = time.perf_counter()
    made.train_step()
    warm = time.perf_counter()
    for _ in range(steps):
        made.train_step()
    trained = time.perf_counter()
    evaluated = made.evaluate()
    return {
        "build_seconds": built - begun,
        "step_seconds": (trained - warm) / steps,
        "evaluate_seconds": time.perf_counter() - trained,
        "own_mib": psutil.Process().memory_full_info().uss / 2**20,
        "accuracy": evaluated["eval/accuracy"],
    }


def _measured(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    found = work(*arguments)
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    # ru_maxrss begins with what the process was forked from, this one does not.
    peak = next(
        line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return found | {
        "cpu_seconds": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        "peak_mib": int(peak) / 2**10,
        "children_peak_mib": children.ru_maxrss / 2**10,
    }


def alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The answer of a process that does nothing else, and its memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, work, *arguments).result()


def measure(folder: Path, rows: int, steps: int) -> dict[str, Any]:
    path = folder / f"pairs-{rows}.jsonl"
    write_pairs(path, rows)
    config = configuration(folder, path)
    found: dict[str, Any] = {"rows": rows, "file_mib": path.stat().st_size / 2**20}
    for start in ("first", "second"):
        found[start] = {"driver": alone(driver, config), "encoding": alone(encoding, config)}
        found[start]["seconds"] = sum(part["seconds"] for part in found[start].values())
    found["learner"] = alone(learner, config, steps)
    cache = Path(str(config.data.cache))
    found["cache_mib"] = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) / 2**20
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[3000, 30_000, 300_000])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument(
        "--folder", help="where the files lie, with room for about 4 KiB a row; default: a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        alone(make_model, Path(folder))
        for rows in options.rows:
            print(json.dumps(measure(Path(folder), rows, options.steps), indent=1), flush=True)


if __name__ == "__main__":
    main()
