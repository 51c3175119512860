"""Accuracy by class, from the confusion matrix of the last evaluation."""

from collections.abc import Iterable

import numpy as np

from moe_vision.common import limits
from moe_vision.report.formats import NONE, count, name_of, percent
from moe_vision.report.markup import Child, Markup, figure, table, tag

_SHOWN = 40  # most classes in one table; of more, the worst are shown and the others folded away
_WORST = 20
_HEAD = ('class', 'images', 'right', 'predicted', 'of these right', 'most often taken for')


def by_class(confusion: np.ndarray, names: list[str]) -> Markup:
    """A row for each class of the confusion matrix `[L, L]` (row: truth), the worst first."""
    images, predicted = np.nansum(confusion, 1), np.nansum(confusion, 0)
    right = np.nan_to_num(np.diag(confusion))
    share = shares(confusion)
    lost = set(limits.unrecognised(right.tolist(), images.tolist()))
    order = np.lexsort((-images, np.where(images > 0, share, 2.0))).tolist()

    def row(c: int) -> list[Child]:
        others = np.nan_to_num(confusion[c]) * (np.arange(len(images)) != c)
        most = int(others.argmax())
        return [
            tag('th', name_of(names, c), scope='row', class_='alarm' if c in lost else None),
            count(images[c]),
            bar(float(share[c])),
            count(predicted[c]),
            percent(float(right[c] / predicted[c])) if predicted[c] > 0 else NONE,
            f'{name_of(names, most)} ({count(others[most])})' if others[most] > 0 else '',
        ]

    first = order if len(order) <= _SHOWN else order[:_WORST]
    parts = [_table(map(row, first))]
    if rest := order[len(first) :]:
        words = f'The other {len(rest)} of {len(order)} classes'
        parts.append(tag('details', tag('summary', words), _table(map(row, rest))))
    how = (
        'How to read: the worst class stands first. “Right” is the share of its images that were '
        'recognised; “predicted” is how often any image was taken for this class. '
    )
    if lost:
        how += (
            f'Orange classes are recognised in less than {100 * limits.RIGHT:g} % of their images.'
        )
    return figure(parts, how)


def shares(confusion: np.ndarray) -> np.ndarray:
    """The share of each class's images that were right `[L]`; NaN for a class without images."""
    images = np.nansum(confusion, 1)
    return np.nan_to_num(np.diag(confusion)) / np.where(images > 0, images, np.nan)


def bar(share: float, warm: bool = False) -> Markup:
    """The cell of a table with a share as a bar, blue or `warm`, and a number."""
    width = f'width:{100 * min(max(share, 0), 1):.1f}%' if np.isfinite(share) else 'width:0'
    inside = tag('span', tag('i', style=width, class_='routed' if warm else None), class_='share')
    return tag('td', inside, percent(share), class_='withbar')


def _table(rows: Iterable[list[Child]]) -> Markup:
    return table(_HEAD, rows, class_='numbers classes', label='Accuracy by class')
