"""Rows of measurements, and how they are written."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from moe_vision import timing


@dataclasses.dataclass(frozen=True)
class Row:
    """A subject beside its baselines, timed in one interleaved run.

    Attributes:
      case: what was measured.
      seconds: by name, of each round; the first name is the subject.
      aims: baseline -> the largest ratio subject / baseline that is aimed at.
      facts: further numbers, by name and unit.
    """

    case: str
    seconds: Mapping[str, Sequence[float]]
    aims: Mapping[str, float] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def subject(self) -> str:
        return next(iter(self.seconds))

    @property
    def milliseconds(self) -> dict[str, float]:
        """Medians over rounds."""
        return {n: 1e3 * statistics.median(s) for n, s in self.seconds.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """Medians over rounds of subject / baseline, each within its round."""
        ours = self.seconds[self.subject]
        return {n: statistics.median(a / b for a, b in zip(ours, s, strict=True))
                for n, s in self.seconds.items() if n != self.subject}

    @property
    def missed(self) -> list[str]:
        """Baselines whose aim is not reached."""
        return [n for n, aim in self.aims.items() if self.ratios[n] > aim]

    def plain(self) -> dict[str, Any]:
        return {'case': self.case, 'milliseconds': self.milliseconds, 'ratios': self.ratios,
                'aims': dict(self.aims), 'facts': dict(self.facts),
                'rounds': len(self.seconds[self.subject])}


def row(case: str, calls: Mapping[str, Any], rounds: int, aims: Mapping[str, float] | None = None,
        facts: Mapping[str, float] | None = None) -> Row:
    """Times the calls, functions without arguments, taking turns; two rounds to warm up."""
    return Row(case, timing.rounds(calls, rounds), aims or {}, facts or {})


def markdown(rows: Sequence[Row]) -> list[str]:
    """A table: the subject's time, its ratio to each baseline (the aim in brackets), facts.

    A ratio above its aim is bold.
    """
    names = list(dict.fromkeys(n for r in rows for n in r.ratios))
    facts = list(dict.fromkeys(n for r in rows for n in r.facts))
    lines = ['| case | ms | ' + ' | '.join([*(f'/ {n}' for n in names), *facts]) + ' |',
             '|---|' + '---|' * (1 + len(names) + len(facts))]
    for r in rows:
        cells = [r.case, number(r.milliseconds[r.subject])]
        for n in names:
            told = f'{r.ratios[n]:.3g}' if n in r.ratios else ''
            told = f'**{told}**' if n in r.missed else told
            cells.append(f'{told} ({r.aims[n]:g})' if n in r.aims else told)
        cells += [number(r.facts[n]) if n in r.facts else '' for n in facts]
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def number(x: float) -> str:
    """Three digits, without an exponent."""
    return f'{x:,.0f}' if abs(x) >= 100 else f'{x:.3g}'
