"""Writes sentences, from a study's numbers, about what its data do not say."""

from collections.abc import Iterator, Sequence

from moe_vision.report.formats import pp, several
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.findings import Finding
from moe_vision.study.report import numbers
from moe_vision.study.report.document import Name, Words, joined


def sentences(analysis: Analysis, primary: Sequence[Finding]) -> Iterator[Words]:
    """One point each.

    Args:
      primary: the comparisons that the pre-registration covers.
    """
    undecided = sum(g.verdict == 'inconclusive' for g in primary)
    if undecided:
        yield (
            f'{undecided} of {several(len(primary), "primary comparison")} stayed inconclusive. '
            'A large p does not show that two arms are alike, only that these seeds cannot '
            'distinguish them. Only the verdicts “equivalent” and “within the margin” show that '
            'a gap is small.'
        )
    yield from _test_set(analysis, primary)
    yield from _otherwise(primary)
    exploratory = len(analysis.findings) - len(primary)
    if exploratory:
        yield (
            f'Exploratory comparisons ({exploratory}) are judged one by one, without a '
            'correction for their number: expect some positive or negative ones by chance.'
        )
    lost = [Name(f'{a.name} seed {s}') for a in analysis.arms.values() for s in a.diverged]
    if lost:
        yield [
            f'{several(len(lost), "run")} diverged and counted as chance: ',
            *joined(lost),
            '. A gap with such a run shows that training failed, not how accurate a trained '
            'network is, so the report gives it with and without that run.',
        ]
    yield (
        'Only these networks, this data set and this length of training were compared; other '
        'sizes are not covered. Costs are counted in FLOPs; measured times depend on the '
        'machine and are in timings.md.'
    )


def images_of(analysis: Analysis) -> list[int]:
    """The numbers of scored images that the rows name, smallest first; [] if they name none."""
    key = 'images' if analysis.split == 'test' else 'validation_images'
    sizes = {row.get(key) for _, _, row in analysis.cells()}
    return sorted(n for n in sizes if isinstance(n, int) and n > 0)


def _test_set(analysis: Analysis, primary: Sequence[Finding]) -> Iterator[Words]:
    if analysis.split != 'test':
        sizes = ' or '.join(f'{n:,}' for n in images_of(analysis))
        yield (
            f'Accuracies are on {f"{sizes} " if sizes else ""}validation images, so that something '
            'may be chosen by them. They are no estimate for other images'
            + ('.' if sizes else ', and the rows do not say how many there are.')
        )
        yield 'The intervals are over training seeds, on this one validation set.'
        return
    for images in images_of(analysis):
        yield (
            f'The test set has {images:,} images, so accuracies move in steps of '
            f'{pp(100 / images, sign=False)} pp. A gap that is smaller in every seed cannot be '
            'seen.'
        )
    if any(row.get('scored_split') == 'validation' for _, _, row in analysis.cells()):
        yield (
            'The data set has no test split: what is called test here is validation, which also '
            'chose the best weights.'
        )
    error = numbers.finite(g.image_error for g in primary or analysis.gaps.values())
    text = 'The intervals are over training seeds, on this one test set. '
    if error:
        low, high = pp(min(error), sign=False), pp(max(error), sign=False)
        yield (
            text + 'Its finite size adds a standard error to each mean gap that more seeds do '
            f'not reduce: here about {low if low == high else f"{low} to {high}"} pp, without '
            'the part of the variation over images that depends on the seed.'
        )
    elif analysis.gaps:
        yield text + 'These rows do not show what its finite size adds.'


def _otherwise(primary: Sequence[Finding]) -> Iterator[Words]:
    """Where the registered answer disagrees with other ways to measure or test it."""
    turned = [g for g in primary if g.estimate.mean * g.selected.mean < 0]
    if turned:
        yield [
            'At the checkpoint selected on validation the mean gap has the opposite sign: ',
            *joined(Name(g.name) for g in turned),
            '.',
        ]
    if any(g.doubt for g in primary):
        yield (
            'The verdicts that are called not sure rest on the t-test alone, which assumes that '
            'gaps are normally distributed; more seeds can confirm them or not.'
        )
