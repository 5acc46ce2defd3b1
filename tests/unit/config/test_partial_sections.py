"""A section given in part keeps the rest of its own default, wherever in the tree it lies."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from rayrlhf.config import OptimConfig, RunConfig, load_config
from rayrlhf.config.base import Node

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
BASE: dict[str, Any] = {"model": {"path": "m"}, "data": {"task": {}}}


def sections(kind: type[Node], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Node]]:
    """Every field whose default is a section, with that default, through the whole tree."""
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Node):
            yield (*path, name), default
            yield from sections(type(default), (*path, name))


def at(config: Node, path: tuple[str, ...]) -> Any:
    found: Any = config
    for part in path:
        found = getattr(found, part)
    return found


def given(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The tree that names nothing but the value at `path`."""
    for part in reversed(path):
        value = {part: value}
    return {**BASE, **value}


EVERY = [(path, default, key) for path, default in sections(RunConfig) for key in type(default).model_fields]


def test_the_walk_reaches_the_sections_that_matter() -> None:
    paths = {".".join(path) for path, _ in sections(RunConfig)}
    assert {"ppo.optim", "ppo.critic_optim", "sft.optim", "reward.optim", "reward.loss", "ppo.kl", "ppo.guard"} <= paths
    assert len(EVERY) > 150


@pytest.mark.parametrize(("path", "default", "key"), EVERY, ids=lambda value: str(value)[:40])
def test_one_key_given_leaves_all_others_alone(path: tuple[str, ...], default: Node, key: str) -> None:
    whole = at(RunConfig.model_validate(BASE), path)
    value = getattr(whole, key)
    if isinstance(value, Node):
        value = value.model_dump()
    assert at(RunConfig.model_validate(given((*path, key), value)), path) == whole


@pytest.mark.parametrize("nothing", [None, {}])
@pytest.mark.parametrize("path", [path for path, _ in sections(RunConfig)], ids=".".join)
def test_an_empty_section_is_the_default(path: tuple[str, ...], nothing: Any) -> None:
    assert RunConfig.model_validate(given(path, nothing)) == RunConfig.model_validate(BASE)


def test_the_learning_rate_alone_does_not_change_the_schedule(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("model: {path: m}\ndata: {task: {}}\nppo:\n  critic_optim:\n    eps: 1.0e-6\n")
    config = load_config(tmp_path / "own.yaml", ["ppo.optim.lr=3e-4"])
    assert (config.ppo.optim.lr, config.ppo.optim.schedule) == (3e-4, "constant")
    assert config.ppo.critic_optim == OptimConfig(lr=5.0e-6, schedule="constant", eps=1.0e-6)


class Outer(Node):
    class Inner(Node):
        optim: OptimConfig = OptimConfig(lr=1.0)
        other: int = 1

    inner: Inner = Inner(optim=OptimConfig(lr=2.0, warmup_steps=7), other=5)
    made: Inner = Field(default_factory=lambda: Outer.Inner(other=9))


def test_a_default_within_a_default_is_that_of_the_outer_one() -> None:
    found = Outer.model_validate({"inner": {"optim": {"lr": 3.0}}, "made": {"optim": {"eps": 0.5}}})
    assert found.inner == Outer.Inner(optim=OptimConfig(lr=3.0, warmup_steps=7), other=5)
    assert found.made == Outer.Inner(optim=OptimConfig(lr=1.0, eps=0.5), other=9)
