"""The model a run with `model.init` starts from: a tokenizer trained on its data, and random weights."""

from rayrlhf.config import RunConfig
from rayrlhf.data.prepared import tokenizer_texts
from rayrlhf.data.tokenizer import train_tokenizer
from rayrlhf.models.export import export_model
from rayrlhf.models.load import make_policy


def prepare_base(config: RunConfig, directory: str) -> None:
    """Write a plain model directory for `model.init`, the same on every machine for the same seed and data."""
    assert config.model.init is not None
    tokenizer = train_tokenizer(tokenizer_texts(config), vocab_size=config.model.vocab_size)
    model = make_policy(config.model.init, tokenizer, seed=config.seed)
    export_model(model, tokenizer, directory)
