"""The reward model trained on with pairs of the policy's own responses, and judged by such pairs, before and after."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import RunConfig
from rayrlhf.config.load import load_config
from rayrlhf.data.bad_rows import BadRows
from rayrlhf.data.cache import cache_folder
from rayrlhf.data.encoding import usable_rows
from rayrlhf.data.exchange import encode_prompt
from rayrlhf.data.on_policy import Answers, pair_up, read_answers
from rayrlhf.data.preference_exports import own_row
from rayrlhf.data.prepared import Source, open_preferences, open_prompts
from rayrlhf.data.schema import Preference, PromptText, Split
from rayrlhf.data.splitting import split_by_prompt
from rayrlhf.data.teaching import teaching
from rayrlhf.data.tokenizer import ids_as_text, load_tokenizer
from rayrlhf.errors import ConfigError, DataError, ResourceError
from rayrlhf.files import write_json, write_whole
from rayrlhf.models.load import check_reward_model
from rayrlhf.pipelines.checks import unreachable
from rayrlhf.pipelines.claim import claimed
from rayrlhf.pipelines.folder import STAGE_OUTPUT, RunFolder
from rayrlhf.pipelines.run import run_stages
from rayrlhf.report.write import write_report
from rayrlhf.reward.drift import accuracy_by_subset, accuracy_on
from rayrlhf.reward.judge import EVALUATION_FILE
from rayrlhf.reward.labels import Drawn, JudgeLabels, draw_labelled, labeller_of
from rayrlhf.reward.model import RewardModel, members_and_heads
from rayrlhf.telemetry.console import Console

REFRESH_FILE = "refresh.json"
_NAME = "refresh"
"""Of the run, below the one that is refreshed, whose only stage trains the reward model on."""
_PAIRS_FILE = "pairs.jsonl"
_ACCOUNT_FILE = "pairs.json"
_REPLAYED = "replayed"
"""The subset of what the reward model was trained on before."""
_EPOCHS = 2
"""More would learn few pairs by heart; the best weights of the evaluations are kept."""
_EVALUATIONS = 8
"""At least, so that there is a choice of weights."""
_FEWEST = 8
"""Held-out pairs of the policy's below which no accuracy is worth naming."""


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """What is asked for."""

    label: str | None
    """gold, judge or `package.module:function`; None: the first of these that there is."""
    pairs: int
    replay: float
    """Preferences of before for each new pair."""
    heldout: float
    """Share of the prompts whose pairs judge, and do not teach."""

    def check(self, config: RunConfig) -> None:
        """ConfigError for a number that is out of range."""
        least = config.data.heldout_fraction
        if self.pairs < 1 or self.replay < 0.0 or not least <= self.heldout < 1.0:
            raise ConfigError(
                f"--pairs {self.pairs} must be at least 1, --replay {self.replay:g} at least 0, and --heldout "
                f"{self.heldout:g} below 1 and not below data.heldout_fraction={least:g} of the run, or prompts that judge the "
                f"reward model would teach it."
            )


def refresh_reward_model(
    run: Path, asked: Refresh, overrides: Sequence[str], *, resume: bool, arguments: Sequence[str] | None = None
) -> dict[str, Any]:
    """Train on, judge before and after, and write refresh.json and the report of the run; what refresh.json holds.

    The model is that of a run of its own below the run's folder, refresh/reward_model. Raises one of our errors.
    """
    config = _config_of(run)
    asked.check(config)
    with claimed(RunFolder(config).root):
        folder = RunFolder(config).root
        base = _base(config)
        home = _home(config)
        root = folder / _NAME
        if resume:
            if not (root / "config.yaml").exists():
                raise ConfigError(f"There is no refresh to resume in {root}: start it without --resume.")
            refreshed = _refreshed(folder, overrides, config=root / "config.yaml")
        else:
            refreshed = _prepare(config, base, home, asked, overrides)
        run_stages(refreshed, resume=resume, arguments=arguments)
        found = _judge(folder, refreshed, home)
        write_json(folder / REFRESH_FILE, found)
        Console().note(f"Report: {write_report(folder)}")
    return found


def _config_of(run: Path) -> RunConfig:
    if not (run / "config.yaml").exists():
        raise ConfigError(f"{run} is not a run's folder: it holds no config.yaml.")
    place = run.absolute()
    return load_config(run / "config.yaml", [f"name={place.name}", f"output_dir={json.dumps(str(place.parent))}"])


def _base(config: RunConfig) -> str:
    """The run's own reward model, or the one that it was given."""
    folder = RunFolder(config)
    if folder.finished("reward"):
        return str(folder.model_dir(STAGE_OUTPUT["reward"]))
    given = [str(Path(term.path).absolute()) for term in config.ppo.reward_models if term.path is not None]
    if not given:
        raise ConfigError(f"{folder.root} has no reward model to refresh: there is no {STAGE_OUTPUT['reward']}/ in it.")
    check_reward_model(given[0])
    return given[0]


def _home(config: RunConfig) -> Source[Preference] | None:
    """What the reward model was trained on and judged by; None where that cannot be read."""
    try:
        return open_preferences(config)
    except DataError as error:
        Console().warn(f"The preferences of before are not read: {error} None of them is mixed in.")
        return None


def _prepare(
    config: RunConfig, base: str, home: Source[Preference] | None, asked: Refresh, overrides: Sequence[str]
) -> RunConfig:
    """Draw and label the pairs, put them and those of before into a file, and the configuration that trains on them."""
    folder = RunFolder(config)
    samples = folder.root / "samples.jsonl"
    answers = read_answers(samples, _prompts(config)) if samples.exists() else None
    if answers is None or not answers.usable:
        raise ConfigError(f"{folder.root} holds no samples of a ppo stage: there are no responses to make pairs of.")
    data = folder.root / _NAME / _PAIRS_FILE
    settings = _settings(config, base, data, asked)
    refreshed = _refreshed(folder.root, [*settings, *overrides])
    labeller = labeller_of(asked.label, answers.usable, refreshed)
    if isinstance(labeller, JudgeLabels):
        _demand_servers(refreshed)
    drawn = draw_labelled(
        pair_up(answers.usable, seed=config.seed),
        labeller,
        asked.pairs,
        seed=config.seed,
        allowed=config.ppo.max_missing,
    )
    teaching(drawn.preferences, refreshed.reward.loss, what="pairs of the policy's own responses")
    split = split_by_prompt(drawn.preferences, refreshed)
    _demand(split, drawn, answers)
    mixed = _mixed(split, home, asked.replay, refreshed)
    steps = -(-len(mixed.train) // refreshed.reward.prompts_per_step) * refreshed.reward.epochs
    every = max(1, min(refreshed.reward.evaluate_every, steps // _EVALUATIONS))
    refreshed = _refreshed(folder.root, [*settings, f"reward.evaluate_every={every}", *overrides])
    aside = RunFolder(refreshed).set_aside()
    if aside is not None:
        Console().note(f"The earlier refresh is now {aside}.")
    rows = [own_row(row) for row in (*mixed.train, *mixed.heldout)]
    write_whole(data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    account = {
        "base": base,
        "label": labeller.name,
        "cut": answers.cut,
        "empty": answers.empty,
        "bins": [{"name": one.name, **one._asdict()} for one in drawn.bins],
        "ties": drawn.ties,
        "unlabelled": len(drawn.reasons),
        "pairs": len(split.train),
        "replayed": len(mixed.train) - len(split.train),
        "heldout_pairs": len(split.heldout),
    }
    write_json(data.with_name(_ACCOUNT_FILE), account)
    Console().note(_told(account))
    return refreshed


def _demand_servers(config: RunConfig) -> None:
    told = [told for judge in config.ppo.judges for url in judge.urls if (told := unreachable(url)) is not None]
    if told:
        raise ResourceError(f"{told[0][0].upper()}{told[0][1:]}.")


def _settings(config: RunConfig, base: str, data: Path, asked: Refresh) -> list[str]:
    """What the run that trains on has otherwise than the one whose reward model it is."""
    members, heads = members_and_heads(base)
    tree = {
        "stages": ["reward"],
        "data.task": None,
        "data.cache": str(cache_folder(config).absolute()),
        "data.preferences": {"path": str(data), "format": "preferences"},
        "data.heldout_fraction": asked.heldout,
        "reward.base": base,
        "reward.keep_head": True,
        "reward.members": members,
        "reward.heads": heads,
        "reward.epochs": _EPOCHS,
        "reward.max_steps": None,
        "reward.train_share": 1.0,
    }
    return [f"{key}={json.dumps(value)}" for key, value in tree.items()]


def _told(account: dict[str, Any]) -> str:
    return (
        f"{account['pairs']:,} pairs of the policy's own responses and {account['replayed']:,} preferences of before are "
        f"trained on, {account['heldout_pairs']:,} pairs are held out, by prompt; labelled by {account['label']}. Left out: "
        f"{account['ties']:,} ties, {account['unlabelled']:,} pairs without a label, and of the responses {account['cut']:,} "
        f"that were cut at the length limit and {account['empty']:,} without a text."
    )


def _prompts(config: RunConfig) -> dict[str, PromptText]:
    """Every prompt of the run by the text that its policy's tokens are."""
    folder = RunFolder(config)
    policy = str(folder.model_dir("sft")) if folder.finished("sft") else config.model.path
    if policy is None:
        raise ConfigError(f"{folder.root} has no policy that read its prompts: neither sft/ nor model.path is there.")
    tokenizer, reading = load_tokenizer(policy), config.data.reading
    split = open_prompts(config)
    rows = [*split.train, *split.heldout]
    bad = BadRows(what="the prompts", allowed=1.0, total=len(rows))  # settled when the run began
    read = usable_rows(rows, lambda row: encode_prompt(tokenizer, row.prompt, reading=reading), bad)
    return {ids_as_text(tokenizer, ids): row.prompt for row, ids in read}


def _refreshed(folder: Path, settings: Sequence[str], *, config: Path | None = None) -> RunConfig:
    """The configuration of the run that trains on."""
    place = [f"name={_NAME}", f"output_dir={json.dumps(str(folder))}"]
    return load_config(config or folder / "config.yaml", [*settings, *place])


def _demand(split: Split[Preference], drawn: Drawn, answers: Answers) -> None:
    if not split.train or len(split.heldout) < _FEWEST:
        raise DataError(
            f"There are {len(split.train)} pairs to train on and {len(split.heldout)} held out, by prompt, beside "
            f"{drawn.ties} ties and {answers.cut} responses that were cut at the length limit; at least 1 and {_FEWEST} are "
            f"needed: raise --heldout, or refresh a longer run."
        )


def _mixed(
    split: Split[Preference], home: Source[Preference] | None, replay: float, config: RunConfig
) -> Split[Preference]:
    """With preferences of before, so many a pair: those that teach again were trained on, those that judge were held out."""

    def some(rows: Sequence[Preference], count: int, part: str) -> list[Preference]:
        order = np.random.default_rng(derive_seed(config.seed, "replay", part)).permutation(len(rows))
        return [replace(rows[i], subset=_REPLAYED) for i in sorted(order[:count])]

    if home is None:
        return split
    # One hash decides the side of every prompt: of the preferences of before, those that it leaves on theirs are taken.
    train = [row for row in split_by_prompt(home.train, config).train if row.prompt]
    heldout = [row for row in split_by_prompt(home.heldout, config).heldout if row.prompt]
    return Split(
        train=[*split.train, *some(train, round(replay * len(split.train)), "train")],
        heldout=[*split.heldout, *some(heldout, round(replay * len(split.heldout)), "heldout")],
    )


def _judge(folder: Path, refreshed: RunConfig, home: Source[Preference] | None) -> dict[str, Any]:
    """What refresh.json holds."""
    base = str(refreshed.reward.base)
    model = folder / _NAME / STAGE_OUTPUT["reward"]
    device = "cuda" if torch.cuda.is_available() and refreshed.device != "cpu" else "cpu"
    account = json.loads((folder / _NAME / _ACCOUNT_FILE).read_text())
    names = [one["name"] for one in account["bins"]]
    own = [row for row in open_preferences(refreshed).heldout if row.subset != _REPLAYED]
    sides: dict[str, dict[str, Any]] = {}
    for when, directory in (("before", base), ("after", str(model))):
        scorer = RewardModel(
            directory,
            device=device,
            dtype=refreshed.scoring.dtype,
            micro_batch_tokens=refreshed.scoring.micro_batch_tokens,
            reading=refreshed.data.reading,
        )
        longest = refreshed.reward_max_length
        sides[when] = {
            "on_policy": accuracy_on(scorer, own, max_length=longest),
            "by_update": accuracy_by_subset(scorer, own, names, max_length=longest),
            "home": None if home is None else accuracy_on(scorer, home.heldout, max_length=longest),
        }
    if home is None:
        sides["before"]["home"] = _evaluated(Path(base))
    return {"model": str(model), **account, **sides}


def _evaluated(directory: Path) -> dict[str, Any] | None:
    """The accuracy that a reward model was packaged with."""
    path = directory / EVALUATION_FILE
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("accuracy") is None:
        return None
    names = {"pairs": "pairs", "accuracy": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    return {key: found[name] for key, name in names.items()}
