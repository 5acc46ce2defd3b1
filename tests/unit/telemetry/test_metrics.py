import pytest

from rayrlhf.telemetry.metrics import METRICS, check_names

AREAS = {
    "time",
    "reward",
    "rollout",
    "policy",
    "critic",
    "kl",
    "parity",
    "mismatch",
    "optim",
    "sync",
    "ledger",
    "perf",
    "eval",
    "guard",
    "staleness",
}


def test_every_metric_is_named_area_slash_name_and_explained():
    for name, metric in METRICS.items():
        area, _, rest = name.partition("/")
        assert area in AREAS
        assert rest.replace("_", "a").isalnum()
        assert metric.meaning.endswith(".")


def test_every_unknown_name_is_told():
    with pytest.raises(KeyError, match=r"a/b, z/y"):
        check_names({"z/y": 1.0, "reward/score": 1.0, "a/b": 1.0})
    check_names(dict.fromkeys(METRICS, 0.0))
