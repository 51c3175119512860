"""Rows and their pre-registration in, everything the report says out. Reads no files.

    >>> analysis = analyse(record, hash, {'k2': {0: row, 1: row}, 'dense': {0: row, 1: row}})

`statistics` are the tests, `pairs` brings rows together by seed, `verdicts` judges all comparisons
of the study at once, `summaries` describes an arm. Inference is over training seeds, for the test
set at hand; what a finite test set adds is `image_error`. The same rows give the same analysis,
in the order of the record.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_vision.study.analysis import pairs as pairing
from moe_vision.study.analysis import statistics, summaries, verdicts
from moe_vision.study.analysis.pairs import Pairs, Row
from moe_vision.study.analysis.types import Analysis, ArmSummary, Gap, Pattern
from moe_vision.study.analysis.verdicts import Judgement

EXPLORATORY = 'exploratory: '  # begins the flag of a gap that confirms nothing


def analyse(record: dict[str, Any], hash: str, rows: dict[str, dict[int, Row]],
            problems: Sequence[str] = ()) -> Analysis:
    """Judges a study.

    Args:
      record: the pre-registration: `dataclasses.asdict` of the Study, as JSON gives it back.
      hash: of the record; rows that carry another one are used and flagged as exploratory.
      rows: arm -> seed -> row. Arms and seeds that the record does not name are left out.
      problems: lines found while reading the rows (missing cells, diverged runs, ...), put before
        those on pairs.

    Returns:
      The analysis. Its primary gaps are the record's; one confirms something only if no flag of
      it starts with 'exploratory: '.
    """
    cells = {arm: {seed: rows[arm][seed] for seed in record['seeds'] if seed in rows.get(arm, {})}
             for arm in record['arms']}
    told = list(problems)
    told += [f'arm {arm}: not in the pre-registration, left out' for arm in rows
             if arm not in cells]
    for arm, of in cells.items():
        extra = [seed for seed in rows.get(arm, {}) if seed not in of]
        told += [f'arm {arm}: {pairing.listed(extra)} not in the pre-registration, left out'
                 ] if extra else []
        told += filter(None, [summaries.unused(arm, of)])
    compared = {}
    for name, comparison in record['comparisons'].items():
        pairs, lacking = pairing.pair(comparison['arm'], comparison['baseline'], cells)
        compared[name] = pairs, bool(comparison['primary'])
        told += [f'comparison {name}: pairs only: {lacking}'] if lacking else []
    judged = verdicts.judge(compared, record['margin'], record['alpha'])
    arms = {arm: summaries.summarise(arm, of) for arm, of in cells.items()}
    gaps = {name: _gap(name, record, compared[name][0], judged[name], arms, hash)
            for name in compared}
    patterns = tuple(_pattern(name, members, gaps)
                     for name, members in record['patterns'].items())
    return Analysis(record, hash, arms, gaps, patterns, tuple(told), rows)


def _gap(name: str, record: Mapping[str, Any], pairs: Pairs, judged: Judgement,
         arms: Mapping[str, ArmSummary], hash: str) -> Gap:
    comparison = record['comparisons'][name]
    primary, gaps = bool(comparison['primary']), pairs.gaps()
    arm, baseline = arms[pairs.arm], arms[pairs.baseline]
    flags = pairing.flags(pairs, hash)
    if primary and len(pairs.seeds) < len(record['seeds']):
        flags.insert(0, f'{EXPLORATORY}{len(pairs.seeds)} of {len(record["seeds"])} registered '
                        'seeds have both runs')
    if not primary:
        flags.insert(0, f'{EXPLORATORY}not a primary comparison, judged at {record["alpha"]:g} '
                        'without correction')
    values = [pairs.accuracies(side) for side in (0, 1)]
    correct = pairs.correct()
    return Gap(
        name=name, arm=arm.name, baseline=baseline.name, primary=primary,
        expected=comparison['expected'], seeds=pairs.seeds,
        arm_values=tuple(map(float, values[0])), baseline_values=tuple(map(float, values[1])),
        estimate=statistics.estimate(gaps, judged.level),
        effect_size=statistics.effect_size(gaps), p=judged.p, p_holm=judged.p_holm,
        p_sign_flip=judged.p_sign_flip, p_tost=judged.p_tost, p_tost_holm=judged.p_tost_holm,
        verdict=judged.verdict, note=judged.note, mde=judged.mde,
        correlation=statistics.correlation(*values),
        image_error=math.nan if correct is None else statistics.image_error(*correct),
        selected=statistics.estimate(pairs.selected(), judged.level),
        without_diverged=statistics.estimate(pairs.ended(), judged.level),
        diverged=sum(pairing.diverged(row) for both in pairs.rows for row in both),
        cost=_ratio(arm.flops, baseline.flops),
        cost_executed=_ratio(arm.flops_executed, baseline.flops_executed),
        params=_ratio(arm.params_total, baseline.params_total), rho_place=arm.rho_place,
        flags=tuple(flags))


def _ratio(a: float, b: float) -> float:
    return a / b if a and b else math.nan


def _pattern(name: str, members: Sequence[str], gaps: Mapping[str, Gap]) -> Pattern:
    """All members as expected (an intersection-union test): p is the largest of theirs.

    p is 1 if a member came out otherwise, and NaN if one is equivalent without a test (sd = 0).
    What was not tested, rows of another pre-registration and missing seeds support nothing.
    """
    of = [gaps[member] for member in members]
    met = all(gap.verdict == gap.expected != 'inconclusive' for gap in of)
    p = [gap.p_tost_holm if gap.expected == 'equivalent' else gap.p_holm for gap in of]
    confirming = not any(flag.startswith(EXPLORATORY) for gap in of for flag in gap.flags)
    largest = math.nan if any(map(math.isnan, p)) else max(p)
    return Pattern(name, tuple(members), tuple(gap.verdict for gap in of),
                   largest if met else 1.0, met and confirming and not math.isnan(largest))
