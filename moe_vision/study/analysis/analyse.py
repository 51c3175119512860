"""Judges a study: turns its pre-registration and rows into everything that the report says.

    >>> analysis = analyse(record, hash, {'k2': {0: row, 1: row}, 'dense': {0: row, 1: row}})

It reads no files. `statistics` holds the tests, `pairs` brings rows together by seed, `verdicts`
judges all comparisons of the study at once, and `summaries` describes an arm. Inference is over
training seeds, for this test set; `image_error` is what a finite test set adds. The same rows give
the same analysis, in the order of the record.

Accuracies and gaps are percentage points (pp); NaN means "not defined".
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_vision.common.json_values import number
from moe_vision.study.analysis import contrasts, findings, summaries, verdicts
from moe_vision.study.analysis import pairs as pairing
from moe_vision.study.analysis.contrasts import Combined
from moe_vision.study.analysis.findings import Contrast, Finding, Gap
from moe_vision.study.analysis.pairs import Pairs, Row
from moe_vision.study.analysis.summaries import ArmSummary


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Comparisons, trends and differences that must come out as expected; p is their largest."""

    name: str
    comparisons: tuple[str, ...]
    verdicts: tuple[str, ...]
    p: float
    supported: bool


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything that the report of a study says."""

    study: dict[str, Any]  # the pre-registration record
    hash: str  # of the record
    arms: dict[str, ArmSummary]
    gaps: dict[str, Gap]
    patterns: tuple[Pattern, ...]
    problems: tuple[str, ...]  # one line each: missing, half-written, of another commit, ...
    rows: dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> row, as read
    contrasts: dict[str, Contrast] = dataclasses.field(default_factory=dict)

    @property
    def findings(self) -> dict[str, Finding]:
        """Comparisons, trends and family differences, by name."""
        return {**self.gaps, **self.contrasts}

    @property
    def levels(self) -> tuple[float, float]:
        """The levels of the outer and the inner interval of every picture."""
        alpha = number(self.study.get('alpha', 0.05))
        return verdicts.levels(verdicts.registered(self.study), alpha)

    @property
    def split(self) -> str:
        """The split that accuracies are of: 'test' or 'validation'."""
        return 'validation' if self.study.get('metric') == pairing.VALIDATION else 'test'

    def cells(self) -> list[tuple[str, int, Row]]:
        """(arm, seed, row) of the registered arms and seeds that have a row, in their order."""
        return [
            (a.name, seed, self.rows[a.name][seed])
            for a in self.arms.values()
            if a.name in self.rows
            for seed in a.seeds
        ]

    def diverged(self, arm: str) -> tuple[int, ...]:
        """Seeds of an arm whose run diverged."""
        return self.arms[arm].diverged if arm in self.arms else ()


def analyse(
    record: dict[str, Any], hash: str, rows: dict[str, dict[int, Row]], problems: Sequence[str] = ()
) -> Analysis:
    """Judges a study.

    Args:
      record: the pre-registration: `dataclasses.asdict` of the Study, as JSON gives it back.
      hash: of the record; rows that carry another one are used and flagged as exploratory.
      rows: arm -> seed -> row. Arms and seeds that the record does not name are left out.
      problems: lines about the rows from reading them (missing cells, diverged runs, ...); they
        come before those about pairs.

    Returns:
      The analysis, with a gap for every comparison of the record, and a contrast for every trend
      and family difference.
    """
    cells = {
        arm: {
            seed: pairing.scored(rows[arm][seed], record['metric'])
            for seed in record['seeds']
            if seed in rows.get(arm, {})
        }
        for arm in record['arms']
    }
    lines = [
        *problems,
        *(f'arm {arm}: not in the pre-registration, left out' for arm in rows if arm not in cells),
    ]
    for arm, seeds in cells.items():
        extra = [seed for seed in rows.get(arm, {}) if seed not in seeds]
        if extra:
            lines.append(
                f'arm {arm}: {pairing.listed(extra)} not in the pre-registration, left out'
            )
        unscored = [
            s for s, r in seeds.items() if r.get('status') != 'diverged' and pairing.diverged(r)
        ]
        if unscored and record['metric'] == pairing.VALIDATION:
            lines.append(
                f'arm {arm}: {pairing.listed(unscored)}: no validation accuracy after the last '
                'step; it counts as chance'
            )
        if unused := summaries.unused(arm, seeds):
            lines.append(unused)
    declared = verdicts.registered(record)
    levels = verdicts.levels(declared, record['alpha'])
    arms = {arm: summaries.summarise(arm, seeds, levels) for arm, seeds in cells.items()}
    pairs = {}
    for name, comparison in record['comparisons'].items():
        pairs[name], lacking = pairing.pair(comparison['arm'], comparison['baseline'], cells)
        if lacking:
            lines.append(f'comparison {name}: incomplete: {lacking}')
    combined = contrasts.of_study(record, pairs, arms)
    combined |= contrasts.unregistered(record, pairs, arms)
    compared: dict[str, Pairs | Combined] = {**pairs, **combined}
    judged = verdicts.judge(
        {n: (c, bool(declared.get(n, {}).get('primary'))) for n, c in compared.items()},
        record['margin'],
        record['alpha'],
    )
    shared = {
        name: findings.of(name, c, judged[name], declared.get(name, {}), record, levels)
        for name, c in compared.items()
    }
    gaps = {n: findings.gap(p, arms, shared[n], hash) for n, p in pairs.items()}
    found = {n: findings.contrast(c, gaps, shared[n]) for n, c in combined.items()}
    patterns = tuple(
        _pattern(name, members, {**gaps, **found}) for name, members in record['patterns'].items()
    )
    return Analysis(record, hash, arms, gaps, patterns, tuple(lines), rows, found)


def _pattern(name: str, members: Sequence[str], gaps: Mapping[str, Finding]) -> Pattern:
    """Whether all members came out as expected (an intersection-union test).

    p is their largest p, 1 if a member came out otherwise, and NaN if one is equivalent without a
    test (sd = 0). Comparisons without a test, with rows of another pre-registration or with missing
    seeds support no pattern.
    """
    compared = [gaps[member] for member in members]
    met = all(verdicts.decided(gap.verdict) == gap.expected != 'inconclusive' for gap in compared)
    p = [gap.p_tost_holm if gap.expected == 'equivalent' else gap.p_holm for gap in compared]
    largest = math.nan if any(map(math.isnan, p)) else max(p)
    supported = met and not math.isnan(largest) and all(gap.confirms for gap in compared)
    return Pattern(
        name,
        tuple(members),
        tuple(gap.verdict for gap in compared),
        largest if met else 1.0,
        supported,
    )
