"""Judge a finished run of configs/sst2_sentiment.yaml by a classifier that shares no sentence with its reward model.

    python tests/benchmarks/sst2_judge.py RUN DATA_ROOT

Prints the share of continuations the classifier calls positive before (SFT) and after (PPO), and how varied they are.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from rayrlhf.config import parse_config
from rayrlhf.data.adapters import labelled_text
from rayrlhf.data.fields import Row
from rayrlhf.data.sources import load_rows
from rayrlhf.data.splitting import sliced
from rayrlhf.experience.summary import distinct_n, repeated_share


def judge_of(run: Path, root: str) -> tuple[Any, int]:
    """A bag-of-n-grams classifier of the sentences the run left aside, and how many those are."""
    config = parse_config(yaml.safe_load((run / "config.yaml").read_text()))
    source = config.data.preferences
    assert source is not None
    unseen = source.model_copy(update={"start": source.stop, "stop": 1.0})
    texts = [(raw.origin, labelled_text(Row(raw.fields), unseen)) for raw in load_rows(unseen, root=root)]
    rows = sliced(texts, unseen, seed=config.seed)
    judge = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(C=10.0, max_iter=2000))
    judge.fit([text for text, _ in rows], [label for _, label in rows])
    return judge, len(rows)


def main(run: Path, root: str) -> None:
    """Print the verdict."""
    judge, count = judge_of(run, root)
    dev = [line.rsplit("\t", 1) for line in (Path(root) / "sst2.dev.tsv").read_text().splitlines()]
    accuracy = judge.score([text for text, _ in dev], [label == "1" for _, label in dev])
    print(f"judge: trained on {count} sentences the reward model did not see, dev accuracy {accuracy:.3f}")
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    evaluated = [row for row in samples if row["stage"] == "eval"]
    for step in sorted({row["step"] for row in evaluated}):
        rows = [row for row in evaluated if row["step"] == step]
        texts = [row["response"] for row in rows]
        positive = judge.predict(texts).mean()
        whole = judge.predict([row["prompt"] + row["response"] for row in rows]).mean()
        repeated = repeated_share([(row["prompt"], row["response"]) for row in rows])
        print(
            f"step {step:4d}: {len(rows)} continuations, positive {positive:.3f} (with their openings {whole:.3f}), "
            f"distinct-2 {distinct_n(texts, 2):.3f}, repeated {repeated:.3f}, "
            f"score {sum(row['score'] for row in rows) / len(rows):.2f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
