"""Writes the tables of verdicts, of tests and of every value behind them."""

from collections.abc import Sequence

from moe_vision.report import formats
from moe_vision.report.formats import p_value, pp, share, times
from moe_vision.study.analysis.analyse import Analysis, Gap
from moe_vision.study.report import numbers
from moe_vision.study.report.answer import standing
from moe_vision.study.report.document import (
    Block,
    Heading,
    Name,
    Section,
    Table,
    Text,
    Verdict,
    Words,
)

_HEAD = (
    'comparison',
    'verdict',
    'gap, pp',
    'interval, pp',
    'level',
    'seeds',
    'FLOPs ÷ baseline',
    'executed FLOPs ÷ baseline',
    'expected',
    'arm − baseline',
    'note',
)
_TESTS = (
    'comparison',
    'sd, pp',
    'effect size d_z',
    'p (paired t)',
    'p, Holm',
    'p (sign flip)',
    'p (TOST)',
    'p (TOST), Holm',
    'smallest detectable gap, pp',
    'correlation',
    'standard error from the test set, pp',
)
_OTHER = (
    'comparison',
    'final, pp',
    'selected on validation, pp',
    'without diverged runs, pp',
    'FLOPs ÷ baseline',
    'parameters ÷ baseline',
    'ρ place of the arm',
)


def section(analysis: Analysis) -> Section:
    """Primary comparisons first; the exploratory ones under a heading that says so."""
    primary = [g for g in analysis.gaps.values() if g.confirms]
    other = [g for g in analysis.gaps.values() if not g.confirms]
    blocks: list[Block] = [
        Text(
            'Equivalence is tested first (two one-sided tests against the margin), then the gap '
            '(paired t-test). A gap that lies within the margin and still differs from zero is '
            'called both: “negative, within the margin”. A verdict is “not sure” if the exact '
            'sign-flip test of the same hypothesis does not confirm it at the same level. A gap is '
            'the accuracy of the arm minus that of the baseline, after the last step, in '
            'percentage points. The interval is a t-interval over seeds, at the level of its '
            'verdict. FLOPs per image are divided by those of the baseline: first what the active '
            'experts need, then what is executed with padded buffers.'
        )
    ]
    if primary:
        blocks += [Heading('Primary comparisons'), _verdicts(primary)]
    if other:
        blocks += [
            Heading('Exploratory comparisons'),
            Text(
                'These are outside the family that the correction covers: each verdict is '
                'judged on its own, at its own level, and confirms nothing. (A registered '
                'primary comparison that is listed here, for a reason under Problems and flags, '
                'keeps the level of its family.)'
            ),
            _verdicts(other),
        ]
    if not analysis.gaps:
        return Section('verdicts', 'Verdicts', [Text('No comparison has a row yet.', 'missing')])
    every = primary + other
    blocks += [
        Heading('Tests'),
        Text(
            'Holm’s correction covers the primary comparisons, once for gaps and once for '
            'equivalences, each at α, so the chance of any false verdict is at most 2α. The '
            'sign-flip test is exact, two-sided and uncorrected: a check that does not assume '
            'normal gaps. The smallest detectable gap is what a paired t-test detects with 80 % '
            'power at this sd and, for primary comparisons, at the strictest level of the '
            'correction. Correlation is between the two arms over seeds; pairing helps if it is '
            'positive.'
        ),
        Table(_TESTS, [_tests(g) for g in every], 'tests'),
        Heading('The same gaps, measured in other ways'),
        Text(
            'First at the checkpoint that was best on validation, then without the pairs in which '
            'a run diverged (elsewhere such a run counts as chance).'
        ),
        Table(_OTHER, [_otherwise(g) for g in every], 'the same gaps, measured in other ways'),
    ]
    return Section('verdicts', 'Verdicts', blocks)


def _verdicts(gaps: Sequence[Gap]) -> Table:
    return Table(_HEAD, [_verdict(g) for g in gaps], 'verdicts')


def _verdict(g: Gap) -> list[Words]:
    e = g.estimate
    expected = (
        '' if g.expected in ('', 'none') else f'{g.expected}: ' + (standing(g.expected, g.verdict))
    )
    notes = [note for note in (g.note, *g.remarks) if note]
    return [
        Name(g.name),
        Verdict(g.verdict),
        pp(e.mean),
        formats.interval(e.low, e.high),
        share(e.level, 5),
        str(e.n),
        times(g.cost),
        times(g.cost_executed),
        expected or formats.NONE,
        [Name(g.arm), ' − ', Name(g.baseline)],
        '; '.join(notes),
    ]


def _tests(g: Gap) -> list[Words]:
    return [
        Name(g.name),
        pp(g.estimate.sd, sign=False),
        formats.signed(g.effect_size),
        p_value(g.p),
        p_value(g.p_holm),
        p_value(g.p_sign_flip),
        p_value(g.p_tost),
        p_value(g.p_tost_holm),
        pp(g.mde, sign=False),
        formats.signed(g.correlation, 2),
        pp(g.image_error, sign=False),
    ]


def _otherwise(g: Gap) -> list[Words]:
    without = 'none diverged'
    if g.diverged:
        runs = formats.several(g.diverged, 'run')
        without = f'{numbers.estimate(g.without_diverged)}, {runs} left out'
    return [
        Name(g.name),
        numbers.estimate(g.estimate),
        numbers.estimate(g.selected),
        without,
        times(g.cost),
        times(g.params),
        share(g.rho_place),
    ]


def per_seed(analysis: Analysis) -> Section:
    """Every gap and every accuracy, one column per seed; diverged runs are marked."""
    gaps, arms = analysis.gaps.values(), analysis.arms.values()
    seeds = sorted({seed for either in (*gaps, *arms) for seed in either.seeds})
    if not seeds:
        nothing = Text('No seed has been run yet.', 'missing')
        return Section('seeds', 'Per seed', [nothing])
    head = [f'seed {s}' for s in seeds]

    def row(values: dict[int, float], lost: Sequence[int], sign: bool) -> list[str]:
        return [
            (pp(values[s], sign=sign) + (' †' if s in lost else '')) if s in values else ''
            for s in seeds
        ]

    of_gaps = [
        [
            Name(g.name),
            *row(g.by_seed, analysis.diverged(g.arm) + analysis.diverged(g.baseline), True),
            pp(g.estimate.mean),
        ]
        for g in gaps
    ]
    of_arms = [
        [
            Name(a.name),
            *row(dict(zip(a.seeds, a.values, strict=False)), a.diverged, False),
            pp(a.mean, sign=False),
        ]
        for a in arms
    ]
    text = (
        'Accuracy after the last step. The seed is the unit of replication: paired runs share '
        'their data order, augmentation and the initial values of common parameters. (An arm '
        'with a seed offset shares nothing; it is the same config with other seeds.) An empty '
        'cell has no row, or no pair. † marks a diverged run, which counts as chance.'
    )
    return Section(
        'seeds',
        'Per seed',
        [
            Text(text),
            Heading('Gaps, pp'),
            Table(['comparison', *head, 'mean'], of_gaps, 'gap per seed'),
            Heading('Accuracies, %'),
            Table(['arm', *head, 'mean'], of_arms, 'accuracy per seed'),
        ],
    )
