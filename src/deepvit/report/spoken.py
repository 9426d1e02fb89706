"""Verdicts that can say themselves: the parts of ``deepvit.collapse`` with the words of this room."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from deepvit.collapse.results import Finding, Measurements, Verdict
from deepvit.report import sentences
from deepvit.report.notebook import in_html


@dataclass
class SpokenFinding(Finding):
    """A finding with its sentence and the numbers that this rests on."""

    @property
    def sentence(self) -> str:
        """The finding in a sentence."""
        return sentences.sentence(self)

    @property
    def evidence(self) -> dict[str, float]:
        """What the sentence rests on ("entropy, mean of these blocks") → number."""
        return sentences.evidence(self)


@dataclass
class SpokenVerdict(Verdict):
    """A verdict with its words: ``headline`` in a line, ``text`` in full."""

    @property
    def headline(self) -> str:
        """Whether it collapses, towards what, from which block on, in a line without a full stop."""
        return sentences.headline(self)

    @property
    def text(self) -> str:
        """The whole verdict, from headline to sureness, in one paragraph."""
        return f"{self.headline}. {self.body}"

    @property
    def body(self) -> str:
        """The same without the headline, for those who print that by itself."""
        return sentences.body(self)

    @property
    def sureness_text(self) -> str:
        """Why it is as sure as it is, a clause."""
        return sentences.sureness(self)

    def __str__(self) -> str:
        return self.text


@dataclass(repr=False)
class SpokenMeasurements(Measurements):
    """Measurements whose verdict has its words; a notebook shows them as headline, paragraph and depth strip."""

    verdict: SpokenVerdict

    def _repr_html_(self) -> str:
        return in_html(self)


def spoken(results: Measurements) -> SpokenMeasurements:
    """The same measurements, their verdict with its words."""
    if isinstance(results, SpokenMeasurements):
        return results
    return SpokenMeasurements(**{**_parts(results), "verdict": speak(results.verdict)})


def speak(verdict: Verdict) -> SpokenVerdict:
    """The verdict with its words."""
    if isinstance(verdict, SpokenVerdict):
        return verdict
    found = [
        each if isinstance(each, SpokenFinding) else SpokenFinding(**_parts(each))
        for each in verdict.findings
    ]
    return SpokenVerdict(**{**_parts(verdict), "findings": found})


def _parts(value: Finding | Verdict | Measurements) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in fields(value)}
