"""Writes the tables of verdicts, of tests and of every value behind them."""

from collections.abc import Sequence

from moe_vision.report import formats
from moe_vision.report.formats import p_value, pp, share, times
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.findings import Finding
from moe_vision.study.report import numbers, words
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
    'q',
    'p (sign flip)',
    'p (TOST)',
    'p (TOST), Holm',
    'smallest detectable gap, pp',
    'correlation',
    'standard error from the test set, pp',
)
_CONTRASTS = (
    'A trend and a family difference stand in the same tables and are judged by the same tests. A '
    'trend fits a line through the gaps of each seed over ρ by least squares; its value is the '
    'change of the line from the lowest to the highest ρ (slope × range). A family difference is '
    'the gap of the first comparison of each pair minus that of the second, at the same ρ, '
    'averaged over the pairs within a seed. Only “equivalent” or “within the margin” says that a '
    'family does not matter. Both use the seeds that all their comparisons have. What is “not '
    'registered” follows from the figures of a study that registered nothing of this kind.'
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
    every = analysis.findings.values()
    primary = [g for g in every if g.confirms]
    other = [g for g in every if not g.confirms]
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
    if analysis.contrasts:
        blocks.append(Text(_CONTRASTS))
    if primary:
        blocks += [Heading('Primary comparisons'), _verdicts(primary)]
    if other:
        blocks += [
            Heading('Exploratory comparisons'),
            Text(
                'These are outside the family that the correction covers: each verdict is '
                'judged on its own, at its own level, and confirms nothing; q, under Tests, '
                'accounts for their number. (A registered primary comparison that is listed here, '
                'for a reason under Problems and flags, keeps the level of its family.)'
            ),
            _verdicts(other),
        ]
    if not analysis.gaps:
        return Section('verdicts', 'Verdicts', [Text('No comparison has a row yet.', 'missing')])
    blocks += [
        Heading('Tests'),
        Text(
            'Holm’s correction covers the primary comparisons, once for gaps and once for '
            'equivalences, each at α, so the chance of any false verdict is at most 2α. q covers '
            'the exploratory comparisons: of the gaps with q up to 0.05, no more than 5 % are '
            'expected to be none (Benjamini and Hochberg). The sign-flip test is exact, two-sided '
            'and uncorrected: a check that does not assume normal gaps. The smallest detectable '
            'gap is what a paired t-test detects with 80 % power at this sd and, for primary '
            'comparisons, at the strictest level of the correction. Correlation is between the two '
            'arms over seeds; pairing helps if it is positive.'
        ),
        Table(_TESTS, [_tests(g) for g in primary + other], 'tests'),
        Heading('The same gaps, measured in other ways'),
        Text(
            'First at the checkpoint that was best on validation, then without the pairs in which '
            'a run diverged (elsewhere such a run counts as chance).'
        ),
        Table(
            _OTHER,
            [_otherwise(g) for g in primary + other],
            'the same gaps, measured in other ways',
        ),
    ]
    return Section('verdicts', 'Verdicts', blocks)


def _verdicts(gaps: Sequence[Finding]) -> Table:
    return Table(_HEAD, [_verdict(g) for g in gaps], 'verdicts')


def _verdict(g: Finding) -> list[Words]:
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
        words.what(g),
        '; '.join(notes),
    ]


def _tests(g: Finding) -> list[Words]:
    return [
        Name(g.name),
        pp(g.estimate.sd, sign=False),
        formats.signed(g.effect_size),
        p_value(g.p),
        p_value(g.p_holm),
        p_value(g.q),
        p_value(g.p_sign_flip),
        p_value(g.p_tost),
        p_value(g.p_tost_holm),
        pp(g.mde, sign=False),
        formats.signed(g.correlation, 2),
        pp(g.image_error, sign=False),
    ]


def _otherwise(g: Finding) -> list[Words]:
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
    gaps, arms = analysis.findings.values(), analysis.arms.values()
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
            *row(g.by_seed, [s for arm in g.arms for s in analysis.diverged(arm)], True),
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
        f'{analysis.split.capitalize()} accuracy after the last step. The seed is the unit of '
        'replication: paired runs share their data order, augmentation and the initial values of '
        'common parameters. (An arm with a seed offset shares nothing; it is the same config with '
        'other seeds.) An empty cell has no row, or no pair. † marks a diverged run, which counts '
        'as chance.'
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
