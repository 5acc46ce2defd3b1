"""What was found in a source of data: the form of its rows, the columns used and those ignored, what was left out."""

from collections import Counter
from dataclasses import dataclass, field

from rayrlhf.config import SourceConfig
from rayrlhf.data.fields import Row
from rayrlhf.data.prompt_forms import PROMPT_LIKE
from rayrlhf.errors import DataError

_META = frozenset(
    {
        "id", "prompt_id", "question_id", "conversation_id", "conversation_hash", "uid", "uuid", "index", "idx", "source",
        "dataset", "split", "subset", "category", "domain", "task", "type", "language", "lang", "model", "models", "generator",
        "chosen_model", "rejected_model", "chosen-model", "rejected-model", "chosen_policy", "rejected_policy", "annotator",
        "annotator_id", "worker", "batch", "date", "time", "timestamp", "tstamp", "url", "license", "difficulty", "hash",
        "metadata", "meta", "info", "extra", "version", "model_a", "model_b", "judge", "good_natured", "safe", "tags", "style",
    }
)  # fmt: skip
"""Names of columns that describe a row and are no part of what was said."""
_SENTENCE = 3
"""Words from which on a column's text is taken for something that somebody said."""


@dataclass(kw_only=True)
class SourceReport:
    """The account of one source."""

    path: str
    rows: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    """All columns, by the number of rows that have them."""
    read: set[str] = field(default_factory=set)
    """Columns whose values are in the records."""
    sayings: Counter[str] = field(default_factory=Counter)
    """Columns with text that may be part of what was said, by the number of rows."""
    notes: list[str] = field(default_factory=list)
    bad: tuple[str, ...] = ()
    """A sentence on the rows that cannot be used, where there are any."""

    def add(self, row: Row) -> None:
        """Count a row that was read."""
        self.forms[row.form] += 1
        self.columns.update(row.keys())
        self.read |= row.read
        for key in row.keys() - row.read:
            if row.kind(key) is str and row.holds(key):
                self.sayings[key] += _is_said(key, row.peek(key))

    @property
    def ignored(self) -> list[str]:
        """Columns that no record holds anything of."""
        return sorted(self.columns.keys() - self.read)

    def refuse_unknown_texts(self, source: SourceConfig) -> None:
        """DataError where text stands beside preference pairs that may belong to them."""
        pairs = sum(count for form, count in self.forms.items() if form.startswith("chosen and rejected"))
        unknown = [
            key
            for key in self.ignored
            if key not in source.ignore and self.sayings[key] > 0.5 * self.columns[key] and key.lower() not in _META
        ]
        if not pairs or not unknown:
            return
        several = ", ".join(unknown)
        raise DataError(
            f"{self.path} has text beside its pairs that would not be read: {several}. If it belongs to the prompt, name it "
            f"(prompt_key, system_key, history_key); if it does not, set ignore=[{several}]."
        )

    def told(self) -> list[str]:
        """Sentences for whoever starts a run."""
        forms = "; ".join(
            form if len(self.forms) == 1 else f"{form} ({count:,})" for form, count in self.forms.most_common()
        )
        used = ", ".join(sorted(self.read & self.columns.keys())) or "none"
        ignored = ", ".join(self.ignored) or "none"
        return [f"{self.path}: {self.rows:,} rows, {forms}. Columns used: {used}; ignored: {ignored}.", *self.notes]


def _is_said(key: str, value: str) -> bool:
    return key.lower() in PROMPT_LIKE or len(value.split()) >= _SENTENCE
