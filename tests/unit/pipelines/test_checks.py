"""What a start, `--dry-run` and `doctor` know before anything starts, each in one sentence of an error with exit status 2."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from rayrlhf.cli.main import app
from rayrlhf.config import load_config
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.errors import ConfigError, RayrlhfError
from rayrlhf.models.export import export_reward_model
from rayrlhf.models.load import make_policy, make_reward_model
from rayrlhf.pipelines.checks import Checked, check_run
from rayrlhf.reward.stats import RewardStats, Scale

WORDS = ["red", "blue", "green", "small", "large", "cat", "dog", "house", "tree", "river"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([" ".join(WORDS)] * 50, vocab_size=300)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    torch.manual_seed(0)
    make_policy({"model_type": "qwen2", "max_position_embeddings": 64, **shape}, tokenizer, seed=0).save_pretrained(
        directory
    )
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def start(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration that fits, prompts, and modules of rewards."""
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    rows = [json.dumps({"prompt": f"{a} {b} {c}"}) for a in WORDS for b in WORDS for c in WORDS[:2]]
    tmp_path.joinpath("prompts.jsonl").write_text("\n".join(rows) + "\n")
    tmp_path.joinpath("good.py").write_text("def reward(prompt, response, reference): return 0.0\nnumber = 3\n")
    tmp_path.joinpath("two.py").write_text("def reward(prompt, response): return 0.0\n")
    tmp_path.joinpath("exits.py").write_text("import sys\nprint('imported')\nsys.exit(0)\n")
    tmp_path.joinpath("hangs.py").write_text("while True: pass\n")
    tmp_path.joinpath("dies.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    tmp_path.joinpath("raises.py").write_text("raise RuntimeError('no licence found')\n")
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("c.yaml").write_text(
        f"stages: [ppo]\nmodel: {{path: {model}, max_length: 64}}\n"
        "data: {prompts: {path: prompts.jsonl, format: prompts}, max_prompt_tokens: 40}\n"
        "sampling: {max_new_tokens: 16}\nwandb: {mode: disabled}\ncluster: {object_store_gib: 0.1}\n"
        "ppo: {prompts_per_step: 8, rewards: [{kind: function, target: 'good:reward'}]}\n"
    )
    return tmp_path / "c.yaml"


def check(config: Path, *overrides: str) -> Checked:
    return check_run(load_config(config, overrides))


def refusal(config: Path, *overrides: str) -> str:
    with pytest.raises(RayrlhfError) as refused:
        check(config, *overrides)
    assert refused.value.exit_status == 2
    return str(refused.value)


def rewards(term: str) -> str:
    return f"ppo.rewards=[{{{term}}}]"


def test_what_fits_passes_and_names_its_shares(start: Path) -> None:
    checked = check(start)
    assert checked.preflight.shortages == []
    assert checked.config.rollout.cpus is not None
    assert checked.plan.rows["ppo"] > 100


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("absent:reward", "importing absent raised ModuleNotFoundError"),
        ("raises:reward", "RuntimeError: no licence found"),
        ("good:absent", "the module good has no absent"),
        ("good:number", "it is int, not a function"),
        ("two:reward", "does not take a prompt, a response and a reference"),
        ("exits:reward", "ended its process with exit status 0"),
        ("dies:reward", "ended its process by signal 11"),
    ],
)
def test_a_function_is_imported_before_the_start_and_cannot_take_the_driver_with_it(
    start: Path, target: str, sentence: str
) -> None:
    told = refusal(start, rewards(f"kind: function, target: '{target}'"))
    assert sentence in told
    assert target in told


def test_an_import_without_end_is_given_up(start: Path) -> None:
    begun = time.monotonic()
    told = refusal(start, rewards("kind: function, target: 'hangs:reward'"), "scoring.start_timeout=10")
    assert "hangs:reward is not imported after 2 s" in told
    assert time.monotonic() - begun < 20


def test_models_servers_and_references_are_looked_for(start: Path, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        alive = f"http://127.0.0.1:{server.getsockname()[1]}"
        check(start, rewards(f"kind: http, api: openrlhf, urls: ['{alive}']"))
    assert f"{alive} does not answer" in refusal(start, rewards(f"kind: http, api: openrlhf, urls: ['{alive}']"))
    assert "must be a URL" in refusal(start, rewards("kind: http, api: openrlhf, urls: ['localhost:5000']"))
    assert "1 score" in refusal(start, rewards(f"kind: model, path: '{model}'"))
    assert "run the reward stage first" in refusal(start, rewards("kind: model"))
    assert "1 score" in refusal(start, f"ppo.guard.judge={model}")
    told = refusal(start, rewards("kind: metric, name: chrf"))
    assert "prompts.jsonl:" in told
    assert "data.prompts.reference_key=reference" in told


def test_a_judge_is_held_against_its_questions(start: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        alive = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        served = f"kind: judge, principles: be brief, urls: ['{alive}'], model: m"
        check(start, rewards(served))
        monkeypatch.delenv("NO_SUCH_KEY", raising=False)
        assert "NO_SUCH_KEY, which key_env of a judge" in refusal(start, rewards(f"{served}, key_env: NO_SUCH_KEY"))
    assert f"{alive} does not answer" in refusal(start, rewards(served))

    def told(path: Path, more: str) -> str:
        return refusal(start, rewards(f"kind: judge, principles: be brief, path: '{path}', {more}"))

    assert f"The judge directory {start}/none does not exist" in told(start / "none", "verdict: text")
    assert "its max_length=4096 exceeds the 64 positions of the judge" in told(model, "verdict: text")
    assert "200 of 200 rows of the prompts, as the judge" in told(model, "max_length: 64")
    assert "leaves no room for responses" in told(model, "max_length: 64")


def test_advantages_are_weighed_by_a_spread_only_where_a_term_has_one(start: Path, model: Path, tmp_path: Path) -> None:
    weight = "ppo.uncertainty_weight=0.5"
    assert "no term of ppo.rewards is one: train one with reward.members or reward.heads" in refusal(start, weight)
    tokenizer = AutoTokenizer.from_pretrained(model)
    made = make_reward_model(str(model), tokenizer, seed=0)
    export_reward_model(made, tokenizer, tmp_path / "rm", state_dict=dict(made.state_dict()))
    scale = Scale(mean=0.0, std=1.0, length_slope=0.0)
    stats = RewardStats(scale=scale, members=[scale], temperature=1.0, max_length=64, template="", probes=[])
    stats.save(tmp_path / "rm")
    assert "is one: train" in refusal(start, rewards(f"kind: model, path: '{tmp_path / 'rm'}'"), weight)
    replace(stats, members=[scale, scale]).save(tmp_path / "rm")
    check(start, rewards(f"kind: model, path: '{tmp_path / 'rm'}'"), weight)


def test_only_rows_that_a_metric_scores_need_a_reference(start: Path) -> None:
    terms = "ppo.rewards=[{kind: metric, name: chrf}, {kind: function, target: 'good:reward', name: other}]"
    rows = [json.loads(line) for line in Path("prompts.jsonl").read_text().splitlines()]
    parts = [{"rewards": "other"}, {"rewards": ["chrf", "other"], "reference": "red"}]
    mixed = [row | parts[number % 2] for number, row in enumerate(rows)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    check(start, terms)
    del mixed[1]["reference"]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    assert "The reward chrf compares with a reference and prompts.jsonl:2 has none" in refusal(start, terms)
    for row in mixed[:20]:
        row["rewards"] = "chfr"
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    told = refusal(start, terms)
    assert "20 of 200 rows of prompts.jsonl cannot be used" in told
    assert "the field rewards names 'chfr', which is none of chrf, other" in told


def test_data_is_read(start: Path) -> None:
    assert "absent.jsonl does not exist" in refusal(start, "data.prompts.path=absent.jsonl")
    assert "are held out" not in refusal(start, "ppo.prompts_per_step=5000")


def test_an_output_dir_that_cannot_hold_a_run_is_refused(start: Path, tmp_path: Path) -> None:
    tmp_path.joinpath("file").touch()
    tmp_path.joinpath("dangling").symlink_to(tmp_path / "nowhere")
    assert f"{tmp_path / 'file'} is no directory" in refusal(start, "output_dir=file")
    assert f"{tmp_path / 'file'} is no directory" in refusal(start, "output_dir=file/below")
    assert f"{tmp_path / 'file'} is no directory" in refusal(start, "output_dir=.", "name=file")
    assert "dangling is no directory" in refusal(start, "output_dir=dangling")
    assert "cannot be written to" in refusal(start, "output_dir=/proc/runs")
    assert "cannot be written to" in refusal(start, f"output_dir={'x' * 300}")
    before = {path.name for path in tmp_path.iterdir()}
    check(start, "output_dir=new/er")
    assert {path.name for path in tmp_path.iterdir()} - before == {"new"}
    assert [path.name for path in tmp_path.joinpath("new/er").iterdir()] == [".data"]  # for the start that comes


def test_a_submitted_job_is_not_let_write_where_ray_deletes(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    for own in ("runs", "./runs", "../runs"):
        told = refusal(start, f"output_dir={own}")
        assert f"output_dir={own}" in told
        assert "output_dir=/shared/runs" in told
    check(start, f"output_dir={tmp_path}/runs")
    unpacked = tmp_path / "working_dir_files" / "package"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    with pytest.raises(ConfigError, match="which Ray deletes"):
        check_run(load_config(start, [f"output_dir={unpacked}/runs"]))


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:1", "nobody answers there"),
        ("http://127.0.0.1:8265", "bin/submit"),
        ("ray://127.0.0.1:10001", "HOST:PORT"),
        ("somewhere", "which is not HOST:PORT"),
        ("somewhere:many", "which is not HOST:PORT"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_sentence(start: Path, address: str, sentence: str) -> None:
    begun = time.monotonic()
    assert sentence in refusal(start, f"cluster.address={address}")
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("stage", [["run"], ["ppo"], ["sft"], ["reward"], ["reward", "train"], ["doctor"]])
def test_every_stage_checks_without_starting(start: Path, stage: list[str]) -> None:
    """`doctor` checks of itself; the stages have the option. Nothing is written."""
    option = [] if stage == ["doctor"] else ["--dry-run"]
    own = (
        "prompts"
        if stage in (["run"], ["ppo"], ["doctor"])
        else "preferences"
        if "reward" in stage
        else "demonstrations"
    )
    source = f"data.{own}={{path: absent.jsonl, format: {own}}}"
    done = CliRunner().invoke(app, [*stage, str(start), *option, source])
    assert done.exit_code == 2, done.output
    assert "absent.jsonl does not exist" in done.output
    assert not Path("runs").exists()
