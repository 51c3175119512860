"""Writes the first section: what was asked, and what the data support, refute and leave open."""

import math
import typing
from collections import Counter
from collections.abc import Iterable

from moe_vision.common.json_values import as_dict, as_list, number
from moe_vision.report import formats
from moe_vision.report.formats import NONE, p_value, pp, several
from moe_vision.study import types
from moe_vision.study.analysis.analyse import Analysis, Pattern
from moe_vision.study.analysis.findings import Finding, Gap
from moe_vision.study.analysis.pairs import EXPLORATORY
from moe_vision.study.analysis.statistics import attainable
from moe_vision.study.analysis.verdicts import decided
from moe_vision.study.report import limits, numbers, words
from moe_vision.study.report.document import (
    Block,
    Bullets,
    Cards,
    Heading,
    Name,
    Section,
    Text,
    Verdict,
    Words,
    joined,
)

VERDICTS = typing.get_args(types.Outcome)


def section(analysis: Analysis) -> Section:
    """Question, numbers to remember, one sentence per primary comparison, patterns, limits."""
    primary = [g for g in analysis.findings.values() if g.confirms]
    question = str(analysis.study.get('question') or '')
    blocks: list[Block] = [Text(question)] if question else []
    blocks += [Text(_headline(primary), 'headline'), _cards(analysis, primary)]
    if primary:
        blocks += [
            Heading('What each primary comparison says'),
            Bullets([sentence(g, number(analysis.study.get('margin'))) for g in primary]),
        ]
    blocks += _waiting(analysis) + _expected(analysis, primary)
    blocks += [
        Heading('What these data cannot say'),
        Bullets(list(limits.sentences(analysis, primary))),
    ]
    return Section('answer', 'Question and answer', blocks)


def _headline(primary: list[Finding]) -> Words:
    if not primary:
        return (
            'No primary comparison was registered, or none has the rows of all its seeds yet, '
            'so everything below is exploratory.'
        )
    counts: Counter[str] = Counter(g.verdict for g in primary)
    mde = numbers.finite(g.mde for g in primary)
    if counts['inconclusive'] == len(primary) and all(g.estimate.sd for g in primary):
        all_of_them = (
            'the only primary comparison could not'
            if len(primary) == 1
            else f'none of the {len(primary)} primary comparisons could'
        )
        least = f'a gap smaller than {pp(min(mde), sign=False)} pp' if mde else 'the gaps'
        return (
            f'Inconclusive: {all_of_them} be decided. The data show neither a gap nor that '
            'gaps lie within the margin; this design was too small to detect '
            f'{least} reliably.'
        )
    if len(primary) == 1:
        only = primary[0]
        but = f', but this is not sure: {only.doubt}' if only.doubt else ''
        return f'The only primary comparison is {_quoted(only.verdict)}{but}.'
    parts = [f'{n} {"is" if n == 1 else "are"} {_quoted(v)}' for v in VERDICTS if (n := counts[v])]
    return [f'Of {len(primary)} primary comparisons, {formats.all_of(parts)}.', *doubts(primary)]


def _quoted(verdict: str) -> str:
    return f'“{verdict}”' if ',' in verdict else verdict


def doubts(gaps: Iterable[Finding]) -> list[str]:
    """' Not sure: a, b (why).' over the comparisons with a doubt; nothing if there is none."""
    by_reason: dict[str, list[Name]] = {}
    for g in gaps:
        if g.doubt:
            by_reason.setdefault(g.doubt, []).append(Name(g.name))
    named = ([*joined(names), f' ({why})'] for why, names in by_reason.items())
    return [' Not sure: ', *joined(named, '; '), '.'] if by_reason else []


def _cards(analysis: Analysis, primary: list[Finding]) -> Cards:
    seeds = as_list(analysis.study.get('seeds'))
    planned = len(as_dict(analysis.study.get('arms'))) * len(seeds)
    done = len(analysis.cells())
    lost = sum(len(a.diverged) for a in analysis.arms.values())
    note = f'{lost} diverged' if lost else 'none diverged'
    if planned > done:
        note += f', {planned - done} missing'
    images = limits.images_of(analysis)
    one = [f'{pp(100 / n, sign=False)} pp' for n in images]
    mde = numbers.finite(g.mde for g in primary)
    span = sorted({pp(min(mde), sign=False), pp(max(mde), sign=False)}, key=float) if mde else []
    margin = number(analysis.study.get('margin'))
    least = attainable(len(seeds))
    return Cards(
        [
            ('Cells', f'{done} of {planned}' if planned else str(done), note),
            (
                'Seeds',
                str(len(seeds)) if seeds else NONE,
                'the same for every arm, except those with a seed offset',
            ),
            ('Margin of equivalence', f'±{pp(margin, sign=False)} pp', 'set before the first run'),
            (
                'Smallest detectable gap',
                f'{" to ".join(span)} pp' if span else NONE,
                'with 80 % power, over the primary comparisons: each with its own sd and the '
                'strictest level of the correction',
            ),
            (
                'Smallest attainable p',
                p_value(least),
                'of the exact sign-flip test, two-sided, with this number of seeds; verdicts that '
                'it does not confirm rest on the t-test and are called not sure',
            ),
            (
                'Resolution of accuracy',
                ', '.join(one) or NONE,
                f'one of {" or ".join(map(str, images))} {analysis.split} images'
                if images
                else f'the rows do not say how many {analysis.split} images there are',
            ),
        ]
    )


def sentence(g: Finding, margin: float) -> list[str]:
    """What one comparison says: verdict, gap, interval with its level, seeds, cost."""
    e = g.estimate
    start: list[str] = [Name(g.name), ': ']
    if not e.n or not math.isfinite(e.mean):
        both = 'both arms' if isinstance(g, Gap) else 'all its arms'
        return [*start, f'no seed has been run in {both}, so nothing can be said.']
    interval = formats.interval(e.low, e.high)
    facts = [
        f'{words.measured(g)} {pp(e.mean)} pp',
        f'{formats.share(e.level, 5)} interval {interval} pp',
        several(e.n, 'paired seed' if isinstance(g, Gap) else 'seed'),
    ]
    if interval == NONE:
        del facts[1]
    end = f' ({", ".join(facts)}){_cost(g)}.'
    body = words.claim(g, margin)
    out = [*start, Verdict(g.verdict), ', ', *body, end]
    if g.verdict == 'inconclusive' and math.isfinite(g.mde):
        out.append(f' The smallest gap detectable with 80 % power is {pp(g.mde, sign=False)} pp.')
    if g.diverged:
        out.append(
            f' This counts {several(g.diverged, "diverged run")} as chance; without these '
            f'{"pairs" if isinstance(g, Gap) else "seeds"} the {words.measured(g)} is '
            f'{numbers.estimate(g.without_diverged)} pp.'
        )
    return [*out, f' Note: {g.note}.' if g.note else '']


def _waiting(analysis: Analysis) -> list[Block]:
    """The registered primary comparisons that confirm nothing yet, and why."""
    waiting = [
        [
            Name(g.name),
            ': ',
            '; '.join(f.removeprefix(EXPLORATORY) for f in g.flags if f.startswith(EXPLORATORY)),
        ]
        for g in analysis.findings.values()
        if g.primary and not g.confirms
    ]
    if not waiting:
        return []
    return [Heading('Registered as primary, but not decided here'), Bullets(waiting)]


def _cost(g: Finding) -> str:
    if not math.isfinite(g.cost):
        return ''
    executed = f' ({formats.times(g.cost_executed)} as executed)'
    return f', at {formats.times(g.cost)} the FLOPs{executed if g.cost_executed > 0 else ""}'


def standing(expected: str, verdict: str) -> str:
    """What a verdict says about the direction expected before the first run."""
    if expected in ('', 'none'):
        return 'nothing expected'
    if decided(verdict) == expected:
        return 'supported'
    return 'undecided' if verdict == 'inconclusive' else 'not supported'


def _expected(analysis: Analysis, primary: list[Finding]) -> list[Block]:
    blocks: list[Block] = [Heading('What was expected, and what came out')]
    directed = [g for g in primary if g.expected not in ('', 'none')]
    for word in ('supported', 'not supported', 'undecided'):
        names = [g for g in directed if standing(g.expected, g.verdict) == word]
        if names:
            blocks.append(Text([f'Directions {word}: ', *joined(map(_outcome, names)), '.']))
    blocks += [Text(_pattern(p, analysis)) for p in analysis.patterns]
    if len(blocks) == 1:
        return [*blocks, Text('No direction and no pattern was registered.', 'missing')]
    return [
        *blocks,
        Text(
            'Only the registered directions and patterns are judged; the hypotheses '
            'in words are under Pre-registration.',
            'note',
        ),
    ]


def _outcome(g: Finding) -> list[str]:
    other = '' if g.verdict in (g.expected, 'inconclusive') else f', found {_quoted(g.verdict)}'
    return [Name(g.name), f' (expected {g.expected}{other})']


def pattern_standing(p: Pattern, expected: Iterable[str]) -> str:
    """supported; not supported, if a comparison was decided against it; or undecided."""
    if p.supported:
        return 'supported'
    against = any(
        standing(e, v) == 'not supported' for e, v in zip(expected, p.verdicts, strict=False)
    )
    return 'not supported' if against else 'undecided'


def _pattern(p: Pattern, analysis: Analysis) -> list[str]:
    gaps = [analysis.findings.get(name) for name in p.comparisons]
    word = pattern_standing(p, [g.expected if g else 'none' for g in gaps])
    members = (
        [Name(name), f' {_quoted(verdict)}']
        for name, verdict in zip(p.comparisons, p.verdicts, strict=False)
    )
    tested = p.supported and math.isfinite(p.p)
    return [
        'Pattern ',
        Name(p.name),
        f': {word}. All its comparisons must come out as expected; the verdicts are: ',
        *joined(members, ', '),
        f'. Their largest p is {p_value(p.p)}' if tested else '',
        '.',
        *(doubts(g for g in gaps if g) if p.supported else ()),
    ]
