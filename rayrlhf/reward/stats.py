"""What a reward model says of itself, beside its weights: the scale of its scores and probes of them."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from transformers import PreTrainedTokenizerBase

from rayrlhf.algorithms.ensemble import Combination, combine, standardized
from rayrlhf.config.data import Reading
from rayrlhf.errors import ModelError
from rayrlhf.files import write_json

STATS_FILE = "reward_stats.json"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Mean and standard deviation of raw scores over the reference set, and how they grow with length."""

    mean: float
    std: float
    length_slope: float
    """Score a unit of ln(1 + response tokens), within prompts."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A sequence as token ids and as text, and the raw score it had when the model was packaged."""

    ids: list[int]
    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class RewardStats:
    """`reward_stats.json`."""

    scale: Scale
    """Of the mean over members, over the responses of the held-out preferences."""
    members: list[Scale]
    """Of each member or head on the same responses; of a single model its own."""
    temperature: float
    """With r the mean over members, sigmoid((r1 - r2) / temperature) is the probability that the first is preferred."""
    max_length: int
    """Longest sequence it was trained on, in tokens."""
    template: str
    """Digest of the chat template and the special tokens that a score depends on."""
    probes: list[Probe]
    reading: Reading = field(default_factory=Reading)
    """How people's text became tokens when it was trained, and does when it scores."""

    def combined(
        self, raw: Float[np.ndarray, "n members"], how: Combination, *, penalty: float
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The scores of an ensemble, its members standardised, as one a row, and their spread."""
        means, stds = (np.array([getattr(scale, name) for scale in self.members]) for name in ("mean", "std"))
        return combine(standardized(raw, means, stds), how, penalty=penalty)

    def less_length(
        self, raw: Float[np.ndarray, "n members"], lengths: Int[np.ndarray, " n"], share: float
    ) -> Float[np.ndarray, "n members"]:
        """Raw scores without a share of the part that the response's tokens, `lengths`, explain of each member's."""
        slopes = np.array([scale.length_slope for scale in self.members])
        return raw - share * np.log1p(lengths)[:, None] * slopes

    def save(self, directory: Path) -> None:
        """Write the file into a model directory."""
        write_json(directory / STATS_FILE, asdict(self))


def load_stats(directory: str | Path) -> RewardStats:
    """Read the file of a model directory; ModelError without one that can be read."""
    path = Path(directory) / STATS_FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return RewardStats(
            **{
                **found,
                "scale": Scale(**found["scale"]),
                "members": [Scale(**member) for member in found["members"]],
                "probes": [Probe(**probe) for probe in found["probes"]],
                "reading": Reading(**found["reading"]),
            }
        )
    except FileNotFoundError:
        raise ModelError(
            f"The reward model {directory} has no {STATS_FILE}, which the reward stage writes beside the models it trains."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from None


def reading_of(directory: str | Path) -> Reading:
    """How a reward model reads people's text; one without a sidecar, of another's making, as it stands."""
    return load_stats(directory).reading if Path(directory, STATS_FILE).exists() else Reading()


def is_ensemble(directory: str | Path) -> bool:
    """Whether a reward model has several members or heads, and so a spread."""
    return Path(directory, STATS_FILE).exists() and len(load_stats(directory).members) > 1


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides how text becomes the tokens that are scored."""
    parts = [tokenizer.chat_template, tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
