"""Judge a finished run of configs/multi30k_translate.yaml on sentences it never saw.

    python tests/benchmarks/translation_judge.py RUN SOURCE REFERENCE      (multi30k.val.en.gz multi30k.val.de.gz)

Translates SOURCE greedily with the SFT policy and with PPO's, in vLLM, and prints corpus chrF and BLEU of both with
95 % intervals and p-values of a paired bootstrap (Koehn 2004, as sacrebleu does it).
"""

import gzip
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import yaml
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from rayrlhf.config import RunConfig, parse_config
from rayrlhf.rollout.environment import engine_environment

RESAMPLES = 1000


def read(path: Path) -> list[str]:
    """The lines of a text file, plain or gzipped."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as lines:
        return [line.strip() for line in lines]


def translate(directory: str, prompts: list[str], config: RunConfig) -> list[str]:
    """Greedy answers of one policy; a process of its own, so that its engine ends with it."""
    import os

    os.environ.update(engine_environment(config.rollout, device="cpu"))
    from vllm import LLM, SamplingParams

    engine: Any = LLM(
        model=directory,
        dtype="float32",
        max_model_len=config.model.max_length,
        enforce_eager=True,
        kv_cache_memory_bytes=2**29,
        generation_config="vllm",
    )
    params = SamplingParams(temperature=0.0, max_tokens=config.sampling.max_new_tokens)
    return [output.outputs[0].text.strip() for output in engine.generate(prompts, params, use_tqdm=False)]


def main(run: Path, source: Path, reference: Path) -> None:
    """Print the table."""
    config = parse_config(yaml.safe_load((run / "config.yaml").read_text()))
    assert config.data.prompts is not None
    prompts = [config.data.prompts.template.format(line=line) for line in read(source)]
    systems = []
    for name in ("sft", "policy"):
        with multiprocessing.get_context("spawn").Pool(1) as own:
            systems.append((name, own.apply(translate, (str(run / name), prompts, config))))
    test = PairedTest(
        systems,
        {"CHRF": CHRF(references=[read(reference)]), "BLEU": BLEU(references=[read(reference)])},
        references=None,
        test_type="bs",
        n_samples=RESAMPLES,
    )
    _, scores = test()
    for metric, column in scores.items():
        if metric == "System":
            continue
        for (name, _), result in zip(systems, column, strict=True):
            told = "" if result.p_value is None else f", p = {result.p_value:.4f} against sft"
            print(f"{metric} {name}: {result.score:.2f} (mean {result.mean:.2f} ± {result.ci:.2f}){told}")
    for i in (0, 1, 2):
        print(prompts[i].strip(), systems[0][1][i], systems[1][1][i], read(reference)[i], sep="\n  ")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
