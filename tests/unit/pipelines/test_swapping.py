"""What may take the place of a reward model in the middle of a run."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayrlhf.actors.scoring import Rewards
from rayrlhf.config import load_config
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.errors import ConfigError
from rayrlhf.models.export import export_model, export_reward_model
from rayrlhf.models.load import make_policy, make_reward_model
from rayrlhf.pipelines.folder import RunFolder
from rayrlhf.pipelines.swapping import RewardSwap
from rayrlhf.reward.stats import RewardStats, Scale

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


def test_a_run_that_weighs_by_the_spread_keeps_an_ensemble(tmp_path: Path) -> None:
    config = load_config(QUICKSTART, [f"output_dir={tmp_path}", "ppo.uncertainty_weight=1.0"])
    tokenizer = train_tokenizer(["an inn by the road"], vocab_size=260)
    export_model(make_policy(config.model.init or {}, tokenizer, seed=0), tokenizer, tmp_path / "base")
    made = make_reward_model(str(tmp_path / "base"), tokenizer, seed=0)
    scale = Scale(mean=0.0, std=1.0, length_slope=0.0)
    single = RewardStats(scale=scale, members=[scale], temperature=1.0, max_length=96, template="", probes=[])
    for name, stats in (("single", single), ("ensemble", replace(single, members=[scale, scale]))):
        export_reward_model(made, tokenizer, tmp_path / name, state_dict=dict(made.state_dict()))
        stats.save(tmp_path / name)
    context: Any = SimpleNamespace(config=config, folder=RunFolder(config))
    scoring: Any = SimpleNamespace(rewards=Rewards())
    loop: Any = SimpleNamespace(boundary=3, at_boundary=lambda act: 4)
    swap = RewardSwap(context, scoring, trainer=None)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"single is a single reward model, and ppo\.uncertainty_weight=1 of this run"
    ):
        swap.ask(loop, directory=str(tmp_path / "single"))
    assert "after update 4" in swap.ask(loop, directory=str(tmp_path / "ensemble"))
