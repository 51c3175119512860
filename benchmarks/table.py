"""Rows of measurements, and tables of them in Markdown."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from moe_vision.common import timing


@dataclasses.dataclass(frozen=True)
class Row:
    """A subject beside its baselines, timed in one interleaved run.

    Attributes:
      case: what was measured.
      seconds: name -> seconds in each round; the first name is the subject.
      aims: baseline -> the largest ratio subject / baseline to aim at.
      facts: name and unit -> a further number.
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
        """For each baseline, the median over rounds of subject / baseline within a round."""
        ours = self.seconds[self.subject]
        return {
            n: statistics.median(a / b for a, b in zip(ours, s, strict=True))
            for n, s in self.seconds.items()
            if n != self.subject
        }

    @property
    def missed(self) -> list[str]:
        """Baselines whose aim is missed."""
        return [n for n, aim in self.aims.items() if self.ratios[n] > aim]

    def record(self) -> dict[str, Any]:
        """The row as JSON can hold it."""
        return {
            'case': self.case,
            'milliseconds': self.milliseconds,
            'ratios': self.ratios,
            'aims': dict(self.aims),
            'facts': dict(self.facts),
            'rounds': len(self.seconds[self.subject]),
        }


def row(
    case: str,
    calls: Mapping[str, Any],
    rounds: int,
    aims: Mapping[str, float] | None = None,
    facts: Mapping[str, float] | None = None,
) -> Row:
    """Times functions without arguments, which take turns; two rounds warm up."""
    return Row(case, timing.rounds(calls, rounds), aims or {}, facts or {})


def markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Writes rows from `Row.record` as tables: the subject's time, ratios to baselines, and facts.

    The aim of a ratio is in brackets; a ratio that misses it is bold. A row that has no baseline in
    common with those above it begins a new table.
    """
    tables: list[list[Mapping[str, Any]]] = []
    for r in rows:
        if not tables or not any(set(r['ratios']) & set(other['ratios']) for other in tables[-1]):
            tables.append([])
        tables[-1].append(r)
    return [line for n, table in enumerate(tables) for line in [''] * (n > 0) + _table(table)]


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(n for r in rows for n in r['ratios']))
    facts = list(dict.fromkeys(n for r in rows for n in r['facts']))
    lines = [
        '| case | ms | ' + ' | '.join([*(f'/ {n}' for n in names), *facts]) + ' |',
        '|---|' + '---|' * (1 + len(names) + len(facts)),
    ]
    for r in rows:
        cells = [r['case'], number(next(iter(r['milliseconds'].values())))]
        for n in names:
            cell = f'{r["ratios"][n]:.3g}' if n in r['ratios'] else ''
            aim = r['aims'].get(n)
            if aim is not None:
                cell = f'**{cell}** ({aim:.3g})' if r['ratios'][n] > aim else f'{cell} ({aim:.3g})'
            cells.append(cell)
        cells += [number(r['facts'][n]) if n in r['facts'] else '' for n in facts]
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def number(x: float) -> str:
    """Three digits, without an exponent."""
    return f'{x:,.0f}' if abs(x) >= 100 else f'{x:.3g}'
