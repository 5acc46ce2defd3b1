"""What a refresh knows before anything starts: one sentence each, exit status 2, and nothing is written."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rayrlhf.cli.main import app
from rayrlhf.config import load_config
from rayrlhf.data.dataset import load_preferences, load_prompts
from rayrlhf.data.innkeeper import best_answer
from rayrlhf.data.schema import Split, pair
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.models.export import export_model, export_reward_model
from rayrlhf.models.load import make_policy, make_reward_model
from rayrlhf.pipelines.claim import claimed
from rayrlhf.pipelines.refresh import _mixed

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with models and, of its ppo stage, two answers to each of 40 prompts."""
    folder = tmp_path / "done"
    config = load_config(QUICKSTART, [f"output_dir={tmp_path}", "name=done", "data.task.preferences=400"])
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    prompts = [str(row.prompt) for row in load_prompts(config).train]
    tokenizer = train_tokenizer(prompts, vocab_size=400)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    policy = make_policy({"model_type": "qwen2", "num_key_value_heads": 2, **shape}, tokenizer, seed=0)
    export_model(policy, tokenizer, folder / "sft")
    model = make_reward_model(str(folder / "sft"), tokenizer, seed=0)
    export_reward_model(model, tokenizer, folder / "reward_model", state_dict=dict(model.state_dict()))
    write_samples(folder, prompts[:40])
    return folder


def write_samples(folder: Path, prompts: list[str], gold: float | None = 0.0) -> None:
    rows = [
        {"stage": "ppo", "step": 1 + number % 4, "prompt": prompt, "response": text, "reference": None}
        | {"gold": gold and value, "finish": "eos"}
        for number, prompt in enumerate(prompts)
        for text, value in ((best_answer(prompt), 1.0), (" No.", 0.0))
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def refused(*args: str) -> str:
    done = CliRunner().invoke(app, ["reward", "refresh", *args])
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert "is not a run's folder: it holds no config.yaml" in refused(str(tmp_path))


def test_a_run_without_a_reward_model(run: Path) -> None:
    (run / "reward_model" / "config.json").unlink()
    assert "has no reward model to refresh: there is no reward_model/ in it" in refused(str(run))


def test_a_run_without_samples(run: Path) -> None:
    (run / "samples.jsonl").write_text("")
    assert "holds no samples of a ppo stage" in refused(str(run))
    (run / "samples.jsonl").unlink()
    assert "holds no samples of a ppo stage" in refused(str(run))


def test_a_label_nobody_gives(run: Path) -> None:
    assert "--label jugde is nobody. Give --label gold, where" in refused(str(run), "--label", "jugde")
    assert "there are 0 judges among ppo.rewards" in refused(str(run), "--label", "judge")
    judge = "ppo.rewards=[{kind: judge, urls: [http://127.0.0.1:9/v1], model: m, principles: long}]"
    told = refused(str(run), "--label", "judge", judge)
    assert "The reward server http://127.0.0.1:9/v1 does not answer here" in told


def test_too_few_pairs(run: Path) -> None:
    """All gold is equal: 40 ties. Then 4 pairs, and none of the run's files is touched."""
    assert (
        "There are 0 pairs to train on and 0 held out, by prompt, beside 40 ties and 0 responses that were cut"
        in refused(str(run))
    )
    config = load_config(run / "config.yaml")
    write_samples(run, [str(row.prompt) for row in load_prompts(config).train[:4]], gold=1.0)
    assert "at least 1 and 8 are needed: raise --heldout, or refresh a longer run" in refused(str(run))
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "reward_model", "samples.jsonl", "sft"]


def test_a_run_under_way(run: Path) -> None:
    with claimed(run):
        assert f"Another run is writing to {run}" in refused(str(run))


def test_numbers_out_of_range(run: Path) -> None:
    assert "--heldout 1 below 1 and not below data.heldout_fraction=0.1" in refused(str(run), "--heldout", "1")
    assert "prompts that judge the reward model would teach it" in refused(str(run), "--heldout", "0.05")
    assert "--pairs 0 must be at least 1" in refused(str(run), "--pairs", "0")


def test_nothing_to_resume(run: Path) -> None:
    assert "There is no refresh to resume in" in refused(str(run), "--resume")


def test_a_head_that_is_not_there_to_be_kept(run: Path) -> None:
    told = refused(str(run), "reward.members=3", "--pairs", "0")
    assert "--pairs" in told
    config = load_config(run / "config.yaml")
    write_samples(run, [str(row.prompt) for row in load_prompts(config).train[:60]], gold=1.0)
    told = refused(str(run), "reward.members=3", "--heldout", "0.5")
    assert "has 1 members of 1 heads, and reward.keep_head=true asks to go on from 3 of 1" in told


def test_what_is_mixed_in_stays_on_its_side(run: Path) -> None:
    """No prompt that judges, in the refresh or at home, is trained on; as many a pair as were asked for."""
    config = load_config(run / "config.yaml", ["data.heldout_fraction=0.25"])
    home = load_preferences(config)
    prompts = [str(row.prompt) for row in load_prompts(config).train]
    own = [pair(prompt, "a", "b", subset="update 1") for prompt in prompts[:40]]
    mixed = _mixed(Split(train=own[:30], heldout=own[30:]), home, 0.5, config)
    replayed = [[row for row in part if row.subset == "replayed"] for part in (mixed.train, mixed.heldout)]
    assert list(map(len, replayed)) == [15, 5]
    assert {row.key for row in replayed[0]} <= {row.key for row in home.train}
    assert {row.key for row in replayed[1]} <= {row.key for row in home.heldout}
    assert _mixed(Split(train=own, heldout=[]), None, 0.5, config).train == own
