import json

import pytest

from rayrlhf.telemetry.summary import write_summary


def test_summary_is_replaced_whole_or_not_at_all(tmp_path):
    write_summary(tmp_path, {"run": "a", "stages": {}})
    with pytest.raises(TypeError):
        write_summary(tmp_path, {"run": object()})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"run": "a", "stages": {}}
    write_summary(tmp_path, {"run": "b"})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"run": "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
