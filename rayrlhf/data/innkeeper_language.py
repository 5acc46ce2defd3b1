"""What is said at the inn: the things guests remark on, and every sentence a host may answer with."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

FOOD = ("soup", "fish", "bread", "tea", "pie")
ROOM = ("room", "bed", "bath", "lamp", "stove")

DEEDS = {
    "cold": ("We will warm the {x} for you.", "We will heat the {x} at once."),
    "burnt": ("We will cook a new {x} for you.", "We will make another {x} now."),
    "late": ("We will bring the {x} at once.", "We will hurry with the {x}."),
    "small": ("We will add more {x} for you.", "We will double the {x} for you."),
    "dirty": ("We will clean the {x} today.", "We will wash the {x} at once."),
    "damp": ("We will dry the {x} today.", "We will air the {x} by the fire."),
    "broken": ("We will mend the {x} today.", "We will repair the {x} at once."),
    "old": ("We will replace the {x} today.", "We will find a better {x} for you."),
    "tasty": ("We will tell the cook about the {x}.", "The cook will be proud of the {x}."),
    "cosy": ("We will tell the maid about the {x}.", "The maid will be proud of the {x}."),
}
"""What a host does about each state of a thing: the fitting deed, in two wordings."""

STATES = {
    **dict.fromkeys(FOOD, ("cold", "burnt", "late", "small", "tasty")),
    **dict.fromkeys(ROOM, ("dirty", "damp", "broken", "old", "cosy")),
}
PRAISE = ("tasty", "cosy")

REGRETS = ("I am sorry the {x} was {p}.", "I am sorry about the {p} {x}.")
JOYS = ("I am glad the {x} was {p}.", "I am happy you found the {x} {p}.")

COURTESIES = (
    "Thank you for telling us.",
    "You are most welcome here.",
    "Please come again soon.",
    "We wish you a pleasant stay.",
    "It is an honour to host you.",
    "Please ask for anything you need.",
    "You are very kind to say so.",
    "Have a restful evening.",
)
RUDE = (
    "That is not my fault.",
    "I am busy now.",
    "Maybe we can talk tomorrow.",
    "Nobody else has complained.",
    "The price stays the same.",
)

OPENINGS = (
    "The {x} was {p}.",
    "Last night the {x} was {p}.",
    "This morning the {x} was {p}.",
    "I must say the {x} was {p}.",
    "Good evening. The {x} was {p}.",
    "My wife says the {x} was {p}.",
)
ASIDES = (
    "",
    " We leave at noon.",
    " We came by the coast road.",
    " It rained all day.",
    " My brother sends his regards.",
    " We will be back in spring.",
    " The view is fine.",
    " I write letters for a paper.",
)
"""What a guest says beside the point."""

SentenceKind = Literal["acknowledge", "deed", "courtesy", "rude"]


@dataclass(frozen=True)
class Remark:
    """Something a guest says about a thing of the inn."""

    thing: str
    state: str


@dataclass(frozen=True)
class Sentence:
    """The meaning of one well-formed sentence of a host."""

    kind: SentenceKind
    remark: Remark | None = None


def acknowledgements(remark: Remark) -> tuple[str, ...]:
    """The ways to show that a remark was heard."""
    patterns = JOYS if remark.state in PRAISE else REGRETS
    return tuple(pattern.format(x=remark.thing, p=remark.state) for pattern in patterns)


def deeds(remark: Remark) -> tuple[str, ...]:
    """The ways to promise what fits a remark."""
    return tuple(pattern.format(x=remark.thing) for pattern in DEEDS[remark.state])


def all_remarks() -> list[Remark]:
    """Everything a guest can remark on, in a fixed order."""
    return [Remark(thing, state) for thing, states in STATES.items() for state in states]


@lru_cache(maxsize=1)
def grammar() -> dict[str, Sentence]:
    """Every well-formed sentence of a host, with its meaning."""
    meanings: dict[str, Sentence] = {}
    for remark in all_remarks():
        meanings.update(dict.fromkeys(acknowledgements(remark), Sentence("acknowledge", remark)))
        meanings.update(dict.fromkeys(deeds(remark), Sentence("deed", remark)))
    meanings.update(dict.fromkeys(COURTESIES, Sentence("courtesy")))
    meanings.update(dict.fromkeys(RUDE, Sentence("rude")))
    return meanings
