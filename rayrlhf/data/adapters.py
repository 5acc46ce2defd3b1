"""From raw rows to text records: the forms that demonstrations and prompts come in."""

from collections.abc import Sequence

from rayrlhf.config import SourceConfig
from rayrlhf.data import fields, messages
from rayrlhf.data.fields import Row, UnusableRowError
from rayrlhf.data.prompt_forms import prompt_of, put_before, stated_prompt, turns_before
from rayrlhf.data.schema import Demonstration, PromptRow, PromptText

_WHOLE = ("messages", "conversations", "conversation")
"""Columns that hold a conversation up to its answer."""


def demonstration(row: Row, source: SourceConfig, *, origin: str) -> Demonstration:
    """prompt and response; or a conversation that ends with the assistant's turn; or an opening and its continuation."""
    if source.format == "labelled":
        row.form = "the opening of a text and its rest"
        opening, rest = split_opening(row, source)
        return Demonstration(prompt=opening, response=rest, origin=origin)
    whole = _whole(row, source)
    if whole is not None:
        return Demonstration(prompt=whole[0], response=whole[1], origin=origin)
    key = next(
        (key for key in (source.response_key, "completion", "output", "answer") if key in row), source.response_key
    )
    row.form = f"prompt and {key}"
    prompt = _asked(row, source, key)
    return Demonstration(prompt=prompt, response=messages.response(row, key), origin=origin)


def prompt_row(row: Row, source: SourceConfig, *, terms: Sequence[str], origin: str) -> PromptRow:
    """A prompt; or the opening of a labelled text. `terms` are the names of the rewards, of which it may name some."""
    rewards = fields.names(row, source.rewards_key, terms)
    if source.format == "labelled":
        row.form = "the opening of a text"
        return PromptRow(prompt=split_opening(row, source)[0], rewards=rewards, origin=origin)
    reference = None
    if source.reference_key in row and row[source.reference_key] is not None:
        reference = messages.as_response(row[source.reference_key], source.reference_key)
    whole = None if stated_prompt(row, source) is not None else _whole(row, source)
    if whole is not None:
        prompt, answer = whole
        row.form += ", the last of which is the reference"
        return PromptRow(prompt=prompt, reference=reference or answer, rewards=rewards, origin=origin)
    row.form = "a prompt" if reference is None else "a prompt and a reference"
    return PromptRow(prompt=prompt_of(row, source), reference=reference, rewards=rewards, origin=origin)


def split_opening(row: Row, source: SourceConfig) -> tuple[str, str]:
    """The first `opening_words` words of a text, and the rest with its leading space."""
    words = labelled_text(row, source)[0].split()
    if len(words) <= source.opening_words:
        raise UnusableRowError(f"the text has {len(words)} words, too few to open with {source.opening_words}")
    return " ".join(words[: source.opening_words]), " " + " ".join(words[source.opening_words :])


def labelled_text(row: Row, source: SourceConfig) -> tuple[str, bool]:
    """A text and whether its label is 1."""
    return fields.text(row, source.text_key), fields.flag(row, source.label_key)


def _whole(row: Row, source: SourceConfig) -> tuple[PromptText, str] | None:
    """A conversation and its answer, where a column holds both; a prompt beside it must be in it."""
    key = next((key for key in _WHOLE if row.kind(key) is list), None)
    if key is None or source.response_key in row:
        return None
    row.form = f"a conversation in {key}"
    turns, answer = messages.split_messages(row[key], key)
    stated = row.get(source.prompt_key)
    if isinstance(stated, str) and not any(turn["content"].strip() == stated.strip() for turn in turns):
        raise UnusableRowError(f"the field {source.prompt_key} is not among the turns of {key}")
    return put_before(turns_before(row, source), turns), answer


def _asked(row: Row, source: SourceConfig, response_key: str) -> PromptText:
    """The prompt of a demonstration; NeMo and OpenRLHF call it input."""
    asked = stated_prompt(row, source)
    if asked is None and response_key == "output" and row.holds("input"):
        return fields.text(row, "input")
    return prompt_of(row, source) if asked is None else asked
