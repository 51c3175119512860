"""Says whether networks underfit, and what they score at other capacities, if a study asked for it.

Accuracy on training images, in evaluation mode, less that on validation: near zero, the network has
learned nothing by heart, and more capacity may pay.
"""

import math
from collections.abc import Iterator

from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.summaries import ArmSummary
from moe_vision.study.report.document import Name, Section, Table, Text
from moe_vision.study.report.numbers import finite, spread
from moe_vision.study.report.tables import csv_text

_FIT = ('arm', 'training accuracy, %', 'final validation accuracy, %', 'training − validation, pp')


def gap(arm: ArmSummary) -> list[float]:
    """Training less final validation accuracy of each seed, pp; NaN where one is not known."""
    return [a - b for a, b in zip(arm.train, arm.validation, strict=False)]


def sections(analysis: Analysis) -> Iterator[Section]:
    """A section for each of the two questions that an arm has an answer to."""
    arms = analysis.arms.values()
    if fitted := [a for a in arms if finite(a.train)]:
        yield Section(
            'fit',
            'Underfit',
            [
                Text(
                    'Mean ± sd over seeds, after training. Training accuracy is in evaluation '
                    'mode, without augmentation, on a fixed part of the training images, the same '
                    'for every arm and seed. If it is close to validation, the network underfits: '
                    'it lacks capacity or time, not images.'
                ),
                Table(
                    _FIT,
                    [
                        [Name(a.name), spread(a.train), spread(a.validation), spread(gap(a))]
                        for a in fitted
                    ],
                    'underfit',
                ),
            ],
        )
    if swept := [a for a in arms if a.at_capacity]:
        factors = _factors(swept)
        yield Section(
            'capacity',
            'Other capacity factors',
            [
                Text(
                    'Test accuracy in %, mean ± sd over seeds, of the same weights at other '
                    'capacity factors, without training again.'
                ),
                Table(
                    ('arm', 'as configured', *factors, 'unbounded'),
                    [
                        [
                            Name(a.name),
                            spread(a.values),
                            *(spread(a.at_capacity.get(f, ())) for f in factors),
                            spread(a.unbounded),
                        ]
                        for a in swept
                    ],
                    'capacity',
                ),
            ],
        )


def tables(analysis: Analysis) -> dict[str, str]:
    """`fit.csv` with the same numbers per seed, if there are any."""
    lines = [
        (a.name, seed, quantity, value)
        for a in analysis.arms.values()
        for quantity, values in {
            'train_pp': a.train,
            'train_less_validation_pp': gap(a),
            **{f'test_pp_at_capacity_{f}': v for f, v in a.at_capacity.items()},
        }.items()
        for seed, value in zip(a.seeds, values, strict=False)
        if math.isfinite(value)
    ]
    return {'fit.csv': csv_text(('arm', 'seed', 'quantity', 'value'), lines)} if lines else {}


def _factors(arms: list[ArmSummary]) -> list[str]:
    """All capacity factors of the arms, in ascending order."""
    return sorted({f for a in arms for f in a.at_capacity}, key=_size)


def _size(factor: str) -> tuple[float, str]:
    try:
        return float(factor), factor
    except ValueError:  # a damaged row
        return math.inf, factor
