"""Run folders for the report's tests, written with the product's own writers."""

import numpy as np

from rayrlhf.telemetry.sinks import MetricsWriter, WandbRun
from rayrlhf.telemetry.summary import write_summary

SILENT = WandbRun(mode="disabled", project="p", entity=None, name="n", config={})
PROMPTS = 24


def gold_of(value, i):
    return value + 0.05 * np.sin(i)


def write_evaluation(writer, step, *, score, gold, kl, response="Welcome.", prompts=PROMPTS, log=True):
    rows = []
    for i in range(prompts):
        row = {
            "stage": "eval",
            "step": step,
            "sample_id": f"eval-0-{i}-0",
            "prompt": f"Guest {i} asks",
            "response": response,
        }
        row |= {
            "score": score + 0.2 * np.cos(i + step),
            "policy_version": step,
            "kl": kl,
            "finish": "length" if i == 0 else "stop",
        }
        row["gold"] = None if gold is None else gold_of(gold, i)
        rows.append({key: float(value) if isinstance(value, np.floating) else value for key, value in row.items()})
    if prompts:
        writer.samples(rows)
    metrics = {"eval/score": score, "eval/kl": kl, "eval/distinct_2": 0.5, "eval/length": 20.0}
    return metrics | ({} if gold is None else {"eval/gold": gold})


def write_ppo(run_dir, path, *, samples=True, **texts):
    """A ppo stage whose evaluations go along `path`, one (step, score, gold, kl) each."""
    writer = MetricsWriter(run_dir, SILENT)
    evaluated = {step: (score, gold, kl) for step, score, gold, kl in path}
    for step in range(path[-1][0] + 1):
        metrics = {}
        if step:
            metrics = {"reward/score": step / 10, "kl/behaviour": step / 5, "policy/entropy": 1.0, "mismatch/p99": 1e-5}
            metrics |= {"time/step": 3.0, "time/rollout": 1.0, "time/learner": 1.5, "mismatch/p50": 0.0}
            metrics |= {"ledger/trained": 128.0 * step, "ledger/lost": 0.0, "critic/explained_variance": float("nan")}
        if step in evaluated:
            score, gold, kl = evaluated[step]
            prompts = PROMPTS if samples else 0
            metrics |= write_evaluation(writer, step, score=score, gold=gold, kl=kl, prompts=prompts, **texts)
        writer.log("ppo", step, metrics)
    writer.close()


def write_supervised(run_dir, stages=("sft", "reward"), steps=30):
    writer = MetricsWriter(run_dir, SILENT)
    for step in range(1, steps + 1):
        if "sft" in stages:
            writer.log("sft", step, {"policy/nll": 5.0 / step} | ({"eval/nll": 5.1 / step} if step % 10 == 0 else {}))
        if "reward" in stages:
            writer.log(
                "reward", step, {"reward/accuracy": 1 - 0.5 / step, "reward/loss": 0.7 / step, "eval/accuracy": 0.8}
            )
    writer.close()


def write_facts(run_dir, **ppo):
    facts = {"wall_seconds": 200.0, "tokens": 1, "updates": 20, "score_before": -0.5, "score_after": 1.5}
    facts |= {"gold_before": 0.4, "gold_after": 0.7, "gold_best": 0.9, "kl_to_reference": 4.2, "mismatch_p99": 1e-5}
    facts |= {"samples_trained": 2560, "samples_lost": 0, "samples_duplicated": 0, "samples_dropped": 0}
    facts |= {"restarts": {"rollout": 0, "scoring": 0, "learner": 0}, "policy_versions": 20} | ppo
    stages = {
        "sft": {"wall_seconds": 60.0, "tokens": 1, "loss": 1.234},
        "reward": {"wall_seconds": 40.0, "tokens": 1, "heldout_accuracy": 0.857},
        "ppo": facts,
    }
    write_summary(
        run_dir,
        {"run": "inn & <co>", "seed": 7, "wall_seconds": 305.0, "peak_memory_bytes": 5 * 2**30, "stages": stages},
    )
