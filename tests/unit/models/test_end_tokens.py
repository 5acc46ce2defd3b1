import json
from pathlib import Path

from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.models.load import end_token_ids


def test_a_response_ends_at_the_tokenizers_token_and_at_those_the_model_lists(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a text"], vocab_size=300)
    assert end_token_ids(str(tmp_path), tokenizer) == [tokenizer.eos_token_id]
    for listed, expected in ((7, {7}), ([9, 7], {7, 9})):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
        assert end_token_ids(str(tmp_path), tokenizer) == sorted(expected | {tokenizer.eos_token_id})
