"""Where text comes from, and what makes a row of it usable."""

from typing import Literal

from pydantic import Field, model_validator

from rayrlhf.config.base import Node

SpecialTokensInText = Literal["split", "encode"]


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
    """A file (.jsonl .json .csv .tsv .parquet, also .gz) under data.root, or a data set name on the hub."""
    split: str = "train"
    """Split, for a hub name."""
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
    """Use the rows in [start, stop), as shares of the data set after a seeded shuffle: disjoint slices serve disjoint uses."""
    limit: int | None = Field(default=None, ge=1)
    """Use at most this many rows."""

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
