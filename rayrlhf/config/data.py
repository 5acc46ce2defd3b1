"""Where text comes from, and what makes a row of it usable."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from rayrlhf.config.base import Node

SpecialTokensInText = Literal["split", "encode"]
Roles = Literal["refuse", "merge"]
PlainPrompts = Literal["text", "chat"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How people's text becomes tokens, where it may be read in more than one way; see DataConfig."""

    special_tokens_in_text: SpecialTokensInText = "split"
    roles: Roles = "refuse"
    plain_prompts: PlainPrompts = "text"


class TaskConfig(Node):
    """A built-in task, with a gold reward the program can compute."""

    name: Literal["innkeeper", "arithmetic"] = "innkeeper"
    """innkeeper: a host answers guests, better or worse. arithmetic: sums and differences, answered rightly or wrongly."""
    demonstrations: int = Field(default=3000, ge=1)
    """Demonstrations of mixed quality for supervised fine-tuning."""
    preferences: int = Field(default=4000, ge=1)
    """Preference pairs for the reward model."""
    label_noise: float = Field(default=0.1, ge=0.0, lt=0.5)
    """Share of preference pairs whose label is flipped."""


class SourceConfig(Node):
    """One data set: local files, or a name on the hub."""

    path: str
    """Under data.root a file (.jsonl .json .csv .tsv .parquet, also .gz), a folder of such or a pattern like
    `part-*.jsonl`; or a data set name on the hub."""
    split: str = "train"
    """Split, for a hub name."""
    config_name: str | None = None
    """Configuration (subset) of a hub data set that has several."""
    data_dir: str | None = None
    """Folder within a hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    format: Literal["prompts", "demonstrations", "preferences", "labelled", "parallel"]
    """`parallel` is two text files whose lines belong together, such as sentences and their translations; as preferences,
    a line's own response over another's. `labelled` is text with a 0/1 label: an opening and its continuation for SFT and
    PPO, positive over negative for pairs."""
    target: str | None = None
    """parallel: the file of the responses; `path` is that of the prompts."""
    template: str = "{line}\n"
    """parallel: the prompt that a line of `path` becomes."""
    columns: list[str] | None = None
    """Names of the columns of a .csv or .tsv file without a header line."""
    prompt_key: str = "prompt"
    """Column of the prompt. Where it is not set, the columns of known forms are found: question, instruction with input,
    context, messages, conversations."""
    system_key: str = "system"
    """Column of a system message that goes before the prompt."""
    history_key: str = "history"
    """Column of the turns before the prompt."""
    tools_key: str = "tools"
    """Column of the definitions of the tools that a conversation may call."""
    ignore: list[str] = Field(default_factory=list)
    """Preferences: columns of text that are not part of a pair. Those that nobody knows are an error."""
    response_key: str = "response"
    chosen_key: str = "chosen"
    rejected_key: str = "rejected"
    probability_key: str = "probability"
    """Preferences: the probability that the stated order is right, a soft label."""
    margin_key: str = "margin"
    """Preferences: by how much the better response is better."""
    rating_key: str = "rating"
    rating_weights: dict[str, float] | None = None
    """Preferences: the rating as a weighted sum of several fields, such as {helpfulness: 0.65, correctness: 0.8}."""
    merge_pairs: bool = False
    """Preferences: bring the pairs of one prompt together into one ranking of its responses, where they imply one."""
    reference_key: str = "reference"
    """A known good response, for rewards that compare with one."""
    rewards_key: str = "rewards"
    """prompts: the names of the terms of ppo.rewards that a row's responses are scored by, a list or a single one; all of
    them where a row has none."""
    subset_key: str = "subset"
    text_key: str = "text"
    label_key: str = "label"
    opening_words: int = Field(default=4, ge=1)
    """labelled: the first words of a text are its prompt, the rest its response."""
    start: float = Field(default=0.0, ge=0.0, lt=1.0)
    stop: float = Field(default=1.0, gt=0.0, le=1.0)
    """Use the prompts in [start, stop), as shares of a seeded order: disjoint slices of a file serve disjoint uses."""
    limit: int | None = Field(default=None, ge=1)
    """Use at most this many records, whole prompts of them."""

    @model_validator(mode="after")
    def _parallel(self) -> "SourceConfig":
        if (self.format == "parallel") != (self.target is not None):
            raise ValueError("target belongs to format=parallel and is required there")
        if "{line}" not in self.template:
            raise ValueError(f"template={self.template!r} must hold {{line}}")
        return self

    @model_validator(mode="after")
    def _slice_not_empty(self) -> "SourceConfig":
        if self.start >= self.stop:
            raise ValueError(f"start ({self.start}) must be below stop ({self.stop})")
        return self


class DataConfig(Node):
    """Either the built-in task, or a source for each stage that needs one."""

    root: str = "."
    """The folder that relative paths start from."""
    cache: str | None = None
    """The folder of what was read and encoded once: the next start finds it by content and settings. Default: `.data` in
    output_dir, which all runs there share and which every node sees."""
    prepare_timeout: float = Field(default=7200.0, gt=0.0)
    """Seconds that reading or encoding a source may take, the first time."""
    task: TaskConfig | None = None
    demonstrations: SourceConfig | None = None
    preferences: SourceConfig | None = None
    prompts: SourceConfig | None = None
    heldout_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of each source kept from training and used for evaluation, split by prompt."""
    max_prompt_tokens: int = Field(default=64, ge=1)
    """A row with a longer prompt is a bad row."""
    special_tokens_in_text: SpecialTokensInText = "split"
    """What the tokenizer's control strings, such as `<|im_start|>`, are where people wrote them into prompts, responses or
    messages: split, the tokens of their letters, so that nobody's text can open or close a turn; encode, control tokens."""
    roles: Roles = "refuse"
    """What becomes of a conversation that the chat template refuses, as with a system message or two turns of one role in a
    row: refuse, it is a bad row; merge, system text goes before the user's first, and neighbours of one role are joined."""
    plain_prompts: PlainPrompts = "text"
    """What a prompt that is plain text is to a model with a chat template: text, read as it stands; chat, a user's turn."""
    max_bad_rows: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of bad rows above which loading is an error."""

    @model_validator(mode="after")
    def _one_origin(self) -> "DataConfig":
        files = [n for n in ("demonstrations", "preferences", "prompts") if getattr(self, n) is not None]
        if self.task is not None and files:
            raise ValueError(
                f"data.task and data.{files[0]} exclude each other: use the built-in task or your own files"
            )
        return self

    @property
    def reading(self) -> Reading:
        """How people's text is read."""
        return Reading(
            special_tokens_in_text=self.special_tokens_in_text, roles=self.roles, plain_prompts=self.plain_prompts
        )
