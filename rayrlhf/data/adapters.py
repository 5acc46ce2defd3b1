"""From raw rows to text records: the forms that demonstrations and prompts come in."""

from collections.abc import Sequence

from rayrlhf.config import SourceConfig
from rayrlhf.data import fields
from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.schema import Demonstration, PromptRow
from rayrlhf.data.sources import RawRow


def demonstration(row: RawRow, source: SourceConfig) -> Demonstration:
    """prompt and response; or chat messages that end with the assistant's; or an opening and its continuation."""
    if source.format == "labelled":
        opening, rest = split_opening(row, source)
        return Demonstration(prompt=opening, response=rest, origin=row.origin)
    if "messages" in row.fields and source.prompt_key not in row.fields:
        prompt, response = fields.split_messages(row.fields["messages"], "messages")
        return Demonstration(prompt=prompt, response=response, origin=row.origin)
    prompt_text = fields.prompt(row.fields, source.prompt_key)
    response = fields.response(row.fields, source.response_key)
    return Demonstration(prompt=prompt_text, response=response, origin=row.origin)


def prompt_row(row: RawRow, source: SourceConfig, *, terms: Sequence[str]) -> PromptRow:
    """A prompt; or the opening of a labelled text. `terms` are the names of the rewards, of which it may name some."""
    rewards = fields.names(row.fields, source.rewards_key, terms)
    if source.format == "labelled":
        return PromptRow(prompt=split_opening(row, source)[0], rewards=rewards, origin=row.origin)
    prompt, reference = fields.prompt(row.fields, source.prompt_key), row.fields.get(source.reference_key)
    if reference is not None:
        reference = fields.as_response(reference, source.reference_key)
    return PromptRow(prompt=prompt, reference=reference, rewards=rewards, origin=row.origin)


def split_opening(row: RawRow, source: SourceConfig) -> tuple[str, str]:
    """The first `opening_words` words of a text, and the rest with its leading space."""
    words = labelled_text(row, source)[0].split()
    if len(words) <= source.opening_words:
        raise UnusableRowError(f"the text has {len(words)} words, too few to open with {source.opening_words}")
    return " ".join(words[: source.opening_words]), " " + " ".join(words[source.opening_words :])


def labelled_text(row: RawRow, source: SourceConfig) -> tuple[str, bool]:
    """A text and whether its label is 1."""
    return fields.text(row.fields, source.text_key), fields.flag(row.fields, source.label_key)
