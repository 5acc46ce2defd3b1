"""`rayrlhf evaluate`, `score`, `verify`, `reward audit` and `reward export`: reward models and preference data on their own."""

from pathlib import Path
from typing import Annotated

import typer

from rayrlhf.cli.errors import clear_errors, quiet_libraries

ModelDir = Annotated[Path, typer.Argument(help="A reward model's directory, such as RUN/reward_model.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
LengthShare = Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of length's part to take out of the scores.")]
Probability = Annotated[str, typer.Option(help="Field with the probability that the stated order is right.")]

_MAX_BAD_ROWS = 0.05
"""Share of rows that may be bad in files that are judged, audited or exported."""

evaluate = typer.Typer(no_args_is_help=True, help="Judge a reward model.")


@evaluate.command("reward")
def evaluate_reward(
    model_dir: ModelDir,
    data: Annotated[Path, typer.Argument(help="Preferences it was not trained on, in any form.")],
    output: Annotated[Path | None, typer.Option(help="Folder for evaluation.json and evaluation.html.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Leave out rows longer than this many tokens.")] = None,
    cut: Annotated[bool, typer.Option(help="Read longer rows as far as that, instead of leaving them out.")] = False,
    length_correction: LengthShare = 0.0,
    probability_key: Probability = "probability",
    limit: Annotated[int | None, typer.Option(help="Judge by this many rows at most.")] = None,
    device: Device = "cpu",
) -> None:
    """Accuracy, calibration, length, disagreement: a table, evaluation.json and evaluation.html."""
    with clear_errors():
        quiet_libraries()
        from rayrlhf.report.reward_page import evaluation_rows, write_evaluation_page
        from rayrlhf.reward.judge import judge, save_judged, score_preferences
        from rayrlhf.reward.model import RewardModel
        from rayrlhf.reward.stats import load_stats
        from rayrlhf.telemetry.console import Console

        rows = _preferences(data, probability_key=probability_key, limit=limit)
        model = RewardModel(str(model_dir), device=device, dtype="auto", micro_batch_tokens=8192)
        stats = load_stats(model_dir)
        longest = max_length or stats.max_length
        scored = score_preferences(model, rows, max_length=longest, cut=cut, max_bad_rows=_MAX_BAD_ROWS)
        found = judge(scored.less_length(stats, length_correction), None if length_correction else stats)
        folder = output or Path(f"{model_dir.name}-{data.name.split('.')[0]}")
        folder.mkdir(parents=True, exist_ok=True)
        figures = save_judged(found, folder)
        console = Console()
        console.table(f"{model_dir} judged by {data}", ["", "", ""], evaluation_rows(figures))
        page = write_evaluation_page(folder / "evaluation.html", figures, model=str(model_dir), data=data.name)
        console.note(f"{folder / 'evaluation.json'}, {page}")


def score(
    model_dir: ModelDir,
    source: Annotated[Path, typer.Argument(help="JSON lines with prompt and response, or messages.")],
    target: Annotated[Path, typer.Argument(help="Written: the same lines with their score. Gone on with if there.")],
    combine: Annotated[str, typer.Option(help="Of an ensemble: mean, min, mean_std, mean_var or soft_min.")] = "mean",
    penalty: Annotated[float, typer.Option(help="Of mean_std, mean_var and soft_min.")] = 1.0,
    field: Annotated[str, typer.Option(help="Name of the field that the score is written into.")] = "score",
    skip: Annotated[
        bool, typer.Option(help="Rows that cannot be scored have the score null and the reason beside it.")
    ] = False,
    device: Device = "cpu",
) -> None:
    """Score a file of prompts and responses; the same command again goes on where it broke off."""
    with clear_errors():
        quiet_libraries()
        from typing import get_args

        from rayrlhf.algorithms.ensemble import Combination
        from rayrlhf.errors import ConfigError
        from rayrlhf.reward.batch import Scoring, score_file
        from rayrlhf.reward.model import RewardModel
        from rayrlhf.reward.stats import load_stats
        from rayrlhf.telemetry.console import Console

        if combine not in get_args(Combination):
            raise ConfigError(f"--combine {combine} must be one of {', '.join(get_args(Combination))}.")
        model = RewardModel(str(model_dir), device=device, dtype="auto", micro_batch_tokens=8192)
        stats = load_stats(model_dir)
        console = Console()

        def tell(done: int, total: int) -> None:
            console.note(f"{done:,} of {total:,} rows scored")

        how: Combination = combine  # type: ignore[assignment]
        scoring = Scoring(combination=how, penalty=penalty, field=field, skip=skip)
        scored = score_file(model, stats, source, target, scoring, progress=tell)
        if not scored:
            console.note(f"{target} is complete already")


def verify(
    model_dir: ModelDir,
    vllm: Annotated[bool, typer.Option(help="Replay the probes through vLLM's pooling engine too.")] = True,
    tolerance: Annotated[float, typer.Option(help="Largest deviation allowed.")] = 1e-3,
    device: Device = "cpu",
) -> None:
    """Whether every tool gives a reward model's texts the scores it was packaged with; exit status 1 if not."""
    with clear_errors():
        quiet_libraries()
        if vllm:
            _prepare_engine(device)
        from collections.abc import Sequence

        from rayrlhf.reward.stats import Probe, load_stats
        from rayrlhf.reward.verify import stock_backends
        from rayrlhf.reward.verify import verify as run_checks
        from rayrlhf.telemetry.console import Console

        backends = stock_backends()
        if vllm:

            def pooled(directory: str, probes: Sequence[Probe]) -> Sequence[float]:
                from rayrlhf.rollout.pooling import pooled_scores

                length = load_stats(directory).max_length
                sequences = [probe.ids for probe in probes]
                dtype = "float32" if device == "cpu" else "auto"
                return pooled_scores(directory, sequences, max_length=length, device=device, dtype=dtype)

            backends["vLLM pooling"] = pooled
        findings = run_checks(str(model_dir), backends, tolerance=tolerance)
        rows = [
            [
                finding.check,
                "passed" if finding.passed else "FAILED",
                "" if finding.deviation is None else f"{finding.deviation:.2e}",
                finding.told,
            ]
            for finding in findings
        ]
        Console().table(f"{model_dir}", ["check", "", "largest deviation", ""], rows)
        if not all(finding.passed for finding in findings):
            raise typer.Exit(1)


def audit(
    data: Annotated[Path, typer.Argument(help="Preferences, in any form.")],
    heldout: Annotated[Path | None, typer.Option(help="Held-out preferences, for prompts that are in both.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Directory or hub name, to count tokens.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Longest prompt plus response of the training to come.")
    ] = None,
    probability_key: Probability = "probability",
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("audit.html"),
) -> None:
    """What is in preference data: repetitions, leaks, length, template, labels to look at."""
    with clear_errors():
        quiet_libraries()
        from rayrlhf.data.tokenizer import load_tokenizer
        from rayrlhf.report.reward_page import audit_rows, write_audit_page
        from rayrlhf.reward.audit import audit as examine
        from rayrlhf.telemetry.console import Console

        rows = _preferences(data, probability_key=probability_key)
        others = [] if heldout is None else _preferences(heldout, probability_key=probability_key)
        loaded = None if tokenizer is None else load_tokenizer(tokenizer)
        found = examine(rows, others, tokenizer=loaded, max_length=max_length)
        console = Console()
        console.table(f"{data}", ["", "", ""], audit_rows(found))
        console.note(f"{write_audit_page(output, found, data=data.name)}")


def export(
    data: Annotated[Path, typer.Argument(help="Preferences, in any form.")],
    target: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
    form: Annotated[str, typer.Option("--format", help="rewardbench, rewardbench2 or trl.")],
    probability_key: Probability = "probability",
) -> None:
    """Write preferences in the form another tool reads."""
    with clear_errors():
        import json

        from rayrlhf.data.preference_exports import export_rows
        from rayrlhf.errors import ConfigError
        from rayrlhf.telemetry.console import Console

        if form not in ("rewardbench", "rewardbench2", "trl"):
            raise ConfigError(f"--format {form} must be rewardbench, rewardbench2 or trl.")
        records = _preferences(data, probability_key=probability_key)
        rows = [row for number, r in enumerate(records) for row in export_rows(r, form, number=number)]  # type: ignore[arg-type]
        target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        Console().note(f"{target}: {len(rows):,} rows of {len(records):,} records")


def _prepare_engine(device: str) -> None:
    """What an engine reads from its environment it reads when torch is imported: later is too late."""
    import os
    import warnings

    from rayrlhf.config import RolloutConfig
    from rayrlhf.rollout.environment import engine_environment

    threads = len(os.sched_getaffinity(0))
    os.environ.update(engine_environment(RolloutConfig(threads=threads), device=device))
    warnings.filterwarnings("ignore", category=FutureWarning)


def _preferences(path: Path, *, probability_key: str, limit: int | None = None):  # type: ignore[no-untyped-def]
    from rayrlhf.config import DataConfig, SourceConfig
    from rayrlhf.data.dataset import describe_preferences
    from rayrlhf.telemetry.console import Console

    source = SourceConfig(path=str(path.absolute()), format="preferences", probability_key=probability_key, limit=limit)
    records, told = describe_preferences(source, DataConfig(max_bad_rows=_MAX_BAD_ROWS), seed=0)
    for sentence in told:
        Console().note(sentence)
    return records
