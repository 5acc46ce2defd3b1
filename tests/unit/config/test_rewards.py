"""What reward terms are called, and what a function's term takes."""

from pathlib import Path

import pytest

from rayrlhf.config import FunctionReward, load_config
from rayrlhf.errors import ConfigError

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


def names(rewards: str) -> list[str]:
    return [term.called for term in load_config(QUICKSTART, [f"ppo.rewards=[{rewards}]"]).ppo.rewards]


def test_a_term_is_called_by_its_name_or_by_what_it_is() -> None:
    given = (
        "{kind: model}, {kind: model, path: /a/helpful/}, {kind: metric, name: chrf}, {kind: function, target: 'a:f'}, "
        "{kind: http, api: vllm, urls: ['http://a', 'http://b']}, {kind: function, target: 'a:f', name: ' in my words '}"
    )
    called = ["model reward_model", "model helpful", "chrf", "a:f", "vllm at http://a", "in my words"]
    assert names(given) == called


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        ("{kind: function, target: 'a:f'}, {kind: function, target: 'a:f', per: group}", "2 terms called 'a:f'"),
        ("{kind: model, path: /a/rm}, {kind: model, path: /b/rm}", "2 terms called 'model rm': give each a name"),
        ("{kind: model, name: x}, {kind: function, target: 'a:f', name: x}", "ppo.rewards has 2 terms called 'x'"),
        ("{kind: model, name: ' '}", "ppo.rewards.0.name=' '"),
        ("{kind: model, penalty: -1}", "ppo.rewards.0.penalty=-1"),
        ("{kind: function, target: 'a:f', per: prompt}", "ppo.rewards.0.per='prompt' must be"),
        ("{kind: function, target: 'a:f', timeout_s: 0}", "ppo.rewards.0.timeout_s"),
        ("{kind: function, target: 'a:f', concurrency: 0}", "ppo.rewards.0.concurrency"),
    ],
)
def test_names_are_told_apart_and_limits_are_limits(rewards: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        names(rewards)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("term", "told"),
    [
        ("path: /a/m, urls: ['http://a/v1'], model: m", "either a model's path or the urls of servers"),
        ("name: x", "either a model's path or the urls of servers"),
        ("urls: ['http://a/v1']", "model is the served model's name: it belongs to urls and is required there"),
        ("path: /a/m, model: m", "model is the served model's name"),
        ("path: /a/m, key_env: KEY", "key_env holds the key of servers"),
        ("urls: ['http://a/v1'], model: m, key_env: 'sk-1'", "key_env='sk-1'"),
        ("path: /a/m, comparisons: 3", "comparisons=3"),
        ("path: /a/m, principles: ' '", "principles=' '"),
    ],
)
def test_a_judge_is_in_one_place(term: str, told: str) -> None:
    principles = "" if "principles" in term else "principles: be brief, "
    with pytest.raises(ConfigError) as refused:
        names(f"{{kind: judge, {principles}{term}}}")
    assert told in str(refused.value)


def test_judges_are_called_by_their_models_and_one_has_an_engine() -> None:
    here, there = "{kind: judge, principles: p, path: /a/m}", "{kind: judge, principles: q, urls: [u], model: org/n}"
    assert names(f"{here}, {there}") == ["judge m", "judge n"]
    with pytest.raises(
        ConfigError, match=r"2 judges with a path \(/a/m, /b/n\) and a scoring worker holds one vLLM engine"
    ):
        names(f"{here}, {{kind: judge, principles: q, path: /b/n}}")


def test_a_function_is_called_for_one_response_at_a_time_unless_told_otherwise() -> None:
    term = FunctionReward(kind="function", target="a:f")
    assert (term.per, term.timeout_s, term.concurrency) == ("response", None, 64)
