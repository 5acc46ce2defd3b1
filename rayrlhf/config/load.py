"""From a YAML file and `key.sub=value` overrides to a checked RunConfig, or one clear sentence."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rayrlhf.config import hints
from rayrlhf.config.root import RunConfig
from rayrlhf.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-6` as a string; here it is the number it looks like."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$|^[-+]?\.\d+[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read `path`, apply overrides in order, check everything; raises ConfigError with one sentence."""
    path = Path(path)
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise ConfigError(f"The configuration file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from None
    tree = _parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"The configuration file {path} must hold a mapping of keys, not {type(tree).__name__}.")
    for override in overrides:
        _apply(tree, override)
    if not tree.get("name"):
        tree["name"] = path.stem
    return parse_config(tree)


def parse_config(tree: Mapping[str, Any]) -> RunConfig:
    """Check a nested mapping; raises ConfigError that names every bad key, its value and what would be valid."""
    try:
        return RunConfig.model_validate(dict(tree))
    except ValidationError as error:
        problems = [_sentence(dict(problem)) for problem in error.errors()]
        raise ConfigError("Bad configuration: " + "; ".join(problems) + ".") from None


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"The override {override!r} must have the form key.sub=value.")
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"The override {override!r} goes below {part!r}, which holds a value, not keys.")
        node = child
    node[parts[-1]] = _parse_yaml(value, f"The value of the override {override!r}")


def _sentence(problem: dict[str, Any]) -> str:
    path, known = _walk(problem["loc"])
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return hints.unknown_key(path, problem["input"], known)
    if problem["type"] in ("union_tag_not_found", "model_attributes_type") and path[:2] == ["ppo", "rewards"]:
        return hints.reward_term(key, problem["input"])
    if problem["type"] == "missing":
        return f"{key} is required"
    if problem["type"] == "model_type":
        return hints.section(key, problem["input"])
    if problem["type"] == "string_pattern_mismatch" and path[-1] == "target":
        return f"{key}={problem['input']!r} must have the form package.module:function"
    if problem["type"] == "union_tag_invalid":
        return f"{key}.kind={problem['ctx']['tag']!r} must be one of {problem['ctx']['expected_tags']}"
    if problem["type"] == "string_type" and isinstance(problem["input"], bool | int | float):
        read = "a truth value (as on, off, yes, no are)" if isinstance(problem["input"], bool) else "a number"
        return f"{key} must be a string, and YAML reads what was given as {read}: quote it, {key}='\"...\"'"
    if problem["type"] == "too_short" and isinstance(problem["input"], list):
        return f"{key} must have at least {problem['ctx']['min_length']} item"
    message = (
        problem["msg"]
        .removeprefix("Value error, ")
        .replace("Input should be", "must be")
        .replace("a valid dictionary", "a mapping")
    )
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    meant = hints.estimator(problem["input"]) if key == "ppo.advantage" or path[:1] == ["stages"] else None
    hint = f" (did you mean {meant}?)" if meant is not None else ""
    return f"{key}={problem['input']!r} {message}{hint}"


def _walk(location: Iterable[str | int]) -> tuple[list[str], list[str]]:
    """The key as its writer knows it, without the tags of unions, and the keys that are valid beside its last part."""
    models: list[type[BaseModel]] = [RunConfig]
    path: list[str] = []
    known: list[str] = []
    for part in location:
        tagged = [model for model in models if part in _tags(model)]
        field = next((model.model_fields[part] for model in models if part in model.model_fields), None)
        if tagged and len(models) > 1:  # A tag may also be a key: `model` is one of kind: http.
            models = tagged
            continue
        path.append(str(part))
        if isinstance(part, str):
            known = [name for model in models for name in model.model_fields]
            models = _models_in(field.annotation) if field is not None else []
    return path, known


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind is not None else ()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
