from dataclasses import replace
from pathlib import Path

import pytest

from rayrlhf.config import load_config
from rayrlhf.pipelines.plan import Plan, show_plan
from rayrlhf.telemetry.console import Console

CONFIGS = Path(__file__).parents[3] / "configs"
PLAN = Plan(parameters=1_000_000, device="cpu")


def test_memory_is_counted_for_the_models_a_run_has() -> None:
    quickstart = load_config(CONFIGS / "quickstart.yaml")
    verified = load_config(CONFIGS / "arithmetic_grpo.yaml")
    assert PLAN.learner_bytes(quickstart) == 2 * 16_000_000  # policy and critic
    assert PLAN.learner_bytes(verified) == 16_000_000
    assert PLAN.frozen_bytes(quickstart) == (1 + 2) * 4_000_000  # the reference and two reward models
    assert PLAN.frozen_bytes(verified) == 4_000_000
    judged = load_config(CONFIGS / "arithmetic_grpo.yaml", ["ppo.guard.judge=/models/judge"])
    assert PLAN.frozen_bytes(judged) == 2 * 4_000_000
    compared = "{kind: judge, principles: p, path: /models/judge, kv_cache_gib: 0.5}"
    compared = load_config(CONFIGS / "arithmetic_grpo.yaml", [f"ppo.rewards=[{compared}]"])
    assert replace(PLAN, judge_parameters=3).frozen_bytes(compared) == 4_000_000 + 12 + 2**29


@pytest.mark.parametrize(("config", "told"), [("quickstart", "ppo: PPO"), ("arithmetic_grpo", "ppo: GRPO")])
def test_the_plan_names_the_algorithm(config: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(Console(), load_config(CONFIGS / f"{config}.yaml"), PLAN)
    assert told in capsys.readouterr().out


def test_memory_of_reward_models_is_that_of_their_own_backbones() -> None:
    config = load_config(CONFIGS / "quickstart.yaml", ["reward.base=[a, b]"])
    plan = replace(PLAN, backbones=(3_000_000, 500_000))
    assert plan.learner_bytes(config) == 16 * 3_000_000  # one at a time, larger than policy and critic
    assert plan.frozen_bytes(config) == (1_000_000 + 3_500_000) * 4
