"""Which machines and images a policy selects. Pure.

Rules: a machine is selected if a clause of `include` fits it and none of `exclude` does; what a clause states must all
fit. Patterns know `*` (any text) and `?` (one character) and nothing else; upper and lower case differ, as they do for
libvirt. Names and tags are the guests' admins' to choose, and so hostile: the work of a match is at most the length of
the name times that of the pattern, and a name longer than any host allows fits no pattern.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Final

from appliance.policy.documents import Document, shown
from appliance.policy.errors import PolicyInvalid

NAME_CHARACTERS_MAX: Final = 1024
_EVERY: Final = "all"
_WILD: Final = re.compile(r"[*?]")


class Kind(StrEnum):
    VM = "vm"
    IMAGE = "image"


@dataclass(frozen=True, slots=True)
class Machine:
    """What can be selected. `id`: a virtual machine's UUID, an image's name; `host` is None for an image. `tags_known`:
    False of one that is on no host that was seen, and may have had any."""

    kind: Kind
    id: str
    name: str
    host: str | None = None
    tags: frozenset[str] = frozenset()
    tags_known: bool = field(default=True, compare=False)

    @property
    def key(self) -> str:
        """Tells it from all others, for as long as it is protected."""
        return f"{self.kind}:{self.id}"


@dataclass(frozen=True, slots=True)
class Clause:
    """All that is stated must fit. Nothing stated: every virtual machine. `image` is stated alone."""

    host: str | None = None
    name: str | None = None
    tag: str | None = None
    image: str | None = None

    def fits(self, machine: Machine) -> bool:
        if machine.kind is Kind.IMAGE:
            return self.image is not None and fits(self.image, machine.name)
        if self.image is not None:
            return False
        return (
            (self.host is None or fits(self.host, machine.host or ""))
            and (self.name is None or fits(self.name, machine.name))
            and (self.tag is None or any(fits(self.tag, tag) for tag in machine.tags))
        )

    def may_fit(self, machine: Machine) -> bool:
        """Whether it fits, whatever tags it has, if those are not known."""
        clause = self if machine.tags_known or self.tag is None else replace(self, tag=None)
        return clause.fits(machine)

    def __str__(self) -> str:
        stated = self.to_json()
        if _EVERY in stated:
            return "every virtual machine"
        return " and ".join(f"{key} {value}" for key, value in stated.items())

    def to_json(self) -> dict[str, object]:
        stated = {"host": self.host, "name": self.name, "tag": self.tag, "image": self.image}
        return {key: value for key, value in stated.items() if value is not None} or {_EVERY: True}


@dataclass(frozen=True, slots=True)
class Selection:
    """`clause` is the one that decided; None: no clause of `include` fits."""

    selected: bool
    clause: Clause | None = None

    @property
    def reason(self) -> str:
        if self.clause is None:
            return "no clause selects it"
        return f"{'selected' if self.selected else 'excluded'} by: {self.clause}"


@dataclass(frozen=True, slots=True)
class Selector:
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    def decide(self, machine: Machine) -> Selection:
        for clause in self.exclude:
            if clause.fits(machine):
                return Selection(False, clause)
        for clause in self.include:
            if clause.fits(machine):
                return Selection(True, clause)
        return Selection(False)

    def may_select(self, machine: Machine) -> bool:
        """For what errs towards selecting: what is not known of its tags speaks for it."""
        if any(clause.fits(machine) for clause in self.exclude if machine.tags_known or clause.tag is None):
            return False
        return any(clause.may_fit(machine) for clause in self.include)

    def surely_selects(self, machine: Machine) -> bool:
        """For what errs towards leaving out: what is not known of its tags speaks against it."""
        return self.decide(machine).selected and not any(clause.may_fit(machine) for clause in self.exclude)

    def __str__(self) -> str:
        left_out = f", but not {' or '.join(map(str, self.exclude))}" if self.exclude else ""
        return "; ".join(map(str, self.include)) + left_out

    def to_json(self) -> dict[str, object]:
        return {
            "include": [clause.to_json() for clause in self.include],
            "exclude": [clause.to_json() for clause in self.exclude],
        }


def read_selector(value: object, where: str) -> Selector:
    """From its JSON form. PolicyInvalid."""
    document = Document(value, where)
    include = tuple(_read_clause(item, at) for at, item in document.items("include"))
    exclude = tuple(_read_clause(item, at) for at, item in document.items("exclude"))
    document.finish()
    if not include:
        raise PolicyInvalid(
            f"{where}.include", "no clause says what is selected",
            hint='For every virtual machine, write {"all": true}; for those of a name, {"name": "web-*"}.',
        )  # fmt: skip
    return Selector(include, exclude)


def _read_clause(value: object, where: str) -> Clause:
    document = Document(value, where)
    every = document.switch(_EVERY)
    clause = Clause(document.text("host"), document.text("name"), document.text("tag"), document.text("image"))
    document.finish()
    others = clause != Clause()
    if every is False:
        raise PolicyInvalid(f"{where}.{_EVERY}", "it is true, or left out")
    if every and others:
        raise PolicyInvalid(where, f"{_EVERY} is stated alone", hint=f"Leave {_EVERY} out, or the rest.")
    if not every and not others:
        raise PolicyInvalid(
            where, f"it says nothing: {shown(value) if not isinstance(value, Mapping) else 'no field is set'}",
            hint=f"State host, name, tag, image, or {_EVERY}.",
        )  # fmt: skip
    if clause.image is not None and clause != Clause(image=clause.image):
        raise PolicyInvalid(where, "image is stated alone: an image has no host and no tags")
    return clause


def fits(pattern: str, name: str) -> bool:
    return len(name) <= NAME_CHARACTERS_MAX and _compiled(pattern).match(name) is not None


def literal_beginning(pattern: str) -> str:
    """Whatever fits begins with it."""
    return _WILD.split(pattern, maxsplit=1)[0]


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    # fnmatch's expression never goes back behind a star that has found what follows it: no exponential work. Its
    # third special form, [...], is not wanted.
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))
