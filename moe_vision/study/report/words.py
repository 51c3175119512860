"""Says in words what a comparison, a trend or a family difference measures, and what came out."""

import math

from moe_vision.report import formats
from moe_vision.report.formats import pp
from moe_vision.study.analysis.findings import Contrast, Finding, Gap
from moe_vision.study.analysis.verdicts import WITHIN
from moe_vision.study.report import numbers
from moe_vision.study.report.document import Name, joined


def measured(g: Finding) -> str:
    """What the value of a finding is."""
    if isinstance(g, Contrast):
        return 'change of the gap' if g.kind == 'trend' else 'mean difference'
    return 'gap'


def claim(g: Finding, margin: float) -> list[str]:
    """What the verdict says: of two arms, of a gap along ρ, or of two families."""
    if isinstance(g, Gap):
        return _of_gap(g, margin)
    assert isinstance(g, Contrast)
    return _of_contrast(g, margin)


def _of_gap(g: Gap, margin: float) -> list[str]:
    """What the verdict on a comparison says about its arms."""
    within = f'±{pp(margin, sign=False)} pp'
    arms = [Name(g.arm), ' and ', Name(g.baseline)]
    if g.verdict.startswith(('positive', 'negative')):
        word = 'above' if g.verdict.startswith('positive') else 'below'
        body = ['the accuracy of ', Name(g.arm), f' lies {word} that of ', Name(g.baseline)]
        return body + _small(g, margin)
    if g.verdict == 'equivalent':
        return [*arms, f' are equivalent within {within}']
    if g.estimate.n > 1 and g.estimate.sd == 0:
        return ['every seed gave the same gap between ', *arms, ', so no t-test is possible']
    return ['the data show neither a gap between ', *arms, f' nor that it lies within {within}']


def _of_contrast(g: Contrast, margin: float) -> list[str]:
    """What the verdict on a trend or a family difference says about gaps."""
    trend = g.kind == 'trend'
    within = f'±{pp(margin, sign=False)} pp'
    if g.verdict.startswith(('positive', 'negative')):
        up = g.verdict.startswith('positive')
        if trend:
            body = [f'the gap {"rises" if up else "falls"} from {span(g)}']
        else:
            body = [f'the first family’s gap lies {"above" if up else "below"} the second’s']
        return body + _small(g, margin)
    what = f'the gap changes from {span(g)}' if trend else 'the gaps of the two families differ'
    if g.verdict == 'equivalent':
        return [f'if {what}, then by less than {within[1:]}']
    if g.estimate.n > 1 and g.estimate.sd == 0:
        return ['every seed gave the same value, so no t-test is possible']
    size = 'change' if trend else 'difference'
    return [f'the data show neither that {what} nor that the {size} lies within {within}']


def _small(g: Finding, margin: float) -> list[str]:
    if g.verdict.endswith(WITHIN):
        return [f', by less than {pp(margin, sign=False)} pp']
    return []


def span(g: Contrast) -> str:
    """The range of ρ that a trend covers: `ρ place 15 % to 74 %`."""
    known = numbers.finite(g.x) or [math.nan]
    ends = f'{formats.share(min(known))} to {formats.share(max(known))}'
    return f'{g.column.replace("rho_", "ρ ")} {ends}'


def what(g: Finding) -> list[str]:
    """What a finding measures, in a few words."""
    if isinstance(g, Gap):
        return [Name(g.arm), ' − ', Name(g.baseline)]
    assert isinstance(g, Contrast)
    names = [Name(part.name) for part in g.parts]
    if g.kind == 'trend':
        return [f'trend: change of the gap from {span(g)}, over ', *joined(names)]
    pairs = ([a, ' − ', b] for a, b in zip(names[::2], names[1::2], strict=True))
    mean = 'mean of ' if len(names) > 2 else ''
    return [f'family difference: {mean}', *joined(pairs)]
