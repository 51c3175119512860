"""Which experts see which classes, and which classes are mistaken for which."""

import functools
import math

import numpy as np

from moe_vision.common.json_values import as_dict, number, value_at
from moe_vision.report import charts, formats, heatmaps, palette
from moe_vision.report.figure import width_of
from moe_vision.report.formats import name_of
from moe_vision.report.markup import Markup, figure, grid, missing, panel, section, table, tag
from moe_vision.report.read import Run, matrix
from moe_vision.report.sections.accuracy import by_class

CELLS = 50  # most classes for a table in which every cell can be read; more become a picture
FAINT = 0.05  # full orange stands for at least this share of a class
PIXELS = 200  # most rows and columns in a picture of the confusion matrix
SPREAD = 300  # most rows in a picture of a map; more classes are averaged in groups
_TABLE = (
    'How to read: each row is a class and adds up to 100 %, each column is an expert. A row '
    'of even colour is a class that all experts share. Point at a cell for counts.'
)
_PICTURE = (
    'How to read: each row is a class, sorted by the expert it uses most, and each column '
    'is an expert. A staircase of strong blocks shows specialisation, an even field shows '
    'none.'
)


def render(run: Run) -> Markup:
    """Accuracy by class, a map of experts by classes per layer, the confusion matrix."""
    names = run.class_names()
    layers = as_dict(run.evaluation.get('layers'))
    maps = {layer: matrix(as_dict(v).get('expert_by_class')) for layer, v in layers.items()}
    known = {layer: m for layer, m in maps.items() if m is not None and np.nansum(m) > 0}
    lost = [layer for layer in run.layers() if layer not in known]
    parts: list[Markup | None] = []
    confusion = run.confusion()
    if confusion is not None:
        parts += [tag('h3', 'Accuracy by class'), by_class(confusion, names)]
    if known:
        parts += [tag('h3', 'Experts and classes'), _maps(run, known, names)]
    if lost:
        parts.append(missing(f'No counts of experts by class for: {", ".join(lost)}.'))
    if confusion is None:
        parts.append(missing('No confusion matrix: nothing has been evaluated on the test set.'))
    else:
        parts += [tag('h3', 'Confusion matrix'), confusions(confusion, names)]
    return section('classes', 'Classes', parts)


def _maps(run: Run, maps: dict[str, np.ndarray], names: list[str]) -> Markup:
    of_class = {layer: _shares(m) for layer, m in maps.items()}
    top = max(float(np.nanmax(s, initial=0.0)) for s in of_class.values()) or 1.0
    panels, readable = [], True
    for layer, counts in maps.items():
        share = of_class[layer]
        small = share.shape[0] <= CELLS and share.shape[1] <= charts.MANY
        readable &= small
        draw = _as_table if small else functools.partial(_as_picture, width_of(len(maps)))
        values = as_dict(value_at(run.evaluation, 'layers', layer))
        panels.append(
            panel(
                layer, draw(layer, share, counts.T, names, top), _information(values, share.shape)
            )
        )
    key = heatmaps.scale(f'{100 * top:.0f} % of a class’s choices')
    longest = max(map(len, names), default=4)
    experts = max(m.shape[0] for m in maps.values())
    width = min(150, 7 * longest + 12) + 35 * experts if readable else 330
    how = (_TABLE if readable else _PICTURE) + ' '
    return grid(panels, [how, key], width=width, wide=True)


def _shares(counts: np.ndarray) -> np.ndarray:
    """Counts `[E, N]` as shares of each class's choices `[N, E]`; NaN for unseen classes."""
    total = np.nansum(counts, 0)
    return (counts / np.where(total > 0, total, np.nan)).T


def _information(values: dict, shape: tuple[int, ...]) -> str | None:
    known = number(values.get('mutual_information'))
    if math.isnan(known):
        return None
    return (
        f'I(expert; class) = {formats.significant(known)} nats (at most '
        f'{formats.significant(math.log(max(min(shape), 1)))})'
    )


def _as_table(
    layer: str, share: np.ndarray, counts: np.ndarray, names: list[str], top: float
) -> Markup:
    heads = [tag('th', '')] + [
        tag('th', str(e), scope='col', style=f'border-color:{palette.expert(e)}')
        for e in range(share.shape[1])
    ]
    classes = [name_of(names, c) for c in range(len(share))]

    def title(c: int, e: int) -> str:
        whole = formats.count(float(np.nansum(counts[c])))
        return (
            f'expert {e}, class {classes[c]}: {formats.count(counts[c, e])} of {whole} '
            f'choices, {formats.percent(share[c, e])}'
        )

    def show(c: int, e: int) -> str:
        return f'{100 * share[c, e]:.0f}' if share[c, e] >= 0.005 else ''

    label = f'Share in per cent of each class that goes to each expert, {layer}'
    return heatmaps.cells(share, heads, classes, top, title, show, label=label)


def _as_picture(
    width: int, layer: str, share: np.ndarray, counts: np.ndarray, names: list[str], top: float
) -> Markup:
    filled = np.nan_to_num(share)
    order = np.lexsort((-filled.max(1), filled.argmax(1)))
    groups = np.array_split(order, min(len(order), SPREAD))
    rows = np.stack([filled[g].mean(0) for g in groups])
    picture = heatmaps.image(
        heatmaps.rgba(rows / top),
        f'Share of each of {len(share)} classes that goes to each of {share.shape[1]} experts, '
        f'{layer}',
        across='expert',
        down='class, by its main expert',
        size=share.shape,
        height=max(220, min(560, 3 * len(rows) + 44)),
        width=width,
    )
    lines = [
        [
            name_of(names, c),
            formats.count(float(np.nansum(counts[c]))),
            ', '.join(
                f'{e} ({formats.percent(float(share[c, e]), 0)})'
                for e in np.argsort(-filled[c], kind='stable')[:3]
                if filled[c, e] > 0
            ),
        ]
        for c in order
    ]
    listing = tag(
        'details',
        tag('summary', 'Classes and their main experts'),
        table(('class', 'choices', 'main experts'), lines, class_='numbers'),
    )
    return Markup(picture + listing)


def confusions(confusion: np.ndarray, names: list[str]) -> Markup:
    """The confusion matrix `[N, N]` (row: truth), with its worst pairs in a table."""
    total = np.nansum(confusion, 1, keepdims=True)
    share = confusion / np.where(total > 0, total, np.nan)
    wrong = np.nan_to_num(share * (1 - np.eye(len(share))))
    top = max(float(wrong.max()), FAINT)
    pairs = _pairs(confusion, wrong, names)
    if len(share) <= 20:
        picture = _small(confusion, share, wrong, top, names)
    else:
        picture, top = _large(confusion, share)
    how = (
        'How to read: rows are the truth, columns the prediction. Blue on the diagonal is '
        f'right, orange is wrong; full orange is {formats.percent(top)} of a row. '
    )
    if len(share) > PIXELS:
        how += f'Neighbouring classes share a cell, so {PIXELS} rows remain.'
    return Markup(figure(tag('div', picture, pairs, class_='beside'), how))


def _small(
    confusion: np.ndarray, share: np.ndarray, wrong: np.ndarray, top: float, names: list[str]
) -> Markup:
    count = len(share)
    classes = [name_of(names, c) for c in range(count)]
    up = 'up' if max(map(len, classes)) > 3 else None  # long names stand upright
    heads = [tag('th', 'truth ↓ predicted →', class_='corner')] + [
        tag('th', tag('span', formats.head(c)), scope='col', title=c, class_=up) for c in classes
    ]
    values = np.where(np.eye(count) > 0, np.nan_to_num(share) * top, wrong)

    def title(i: int, j: int) -> str:
        return (
            f'{classes[i]} taken for {classes[j]}: {formats.count(confusion[i, j])} '
            f'({formats.percent(share[i, j])})'
        )

    return heatmaps.cells(
        values,
        heads,
        classes,
        top,
        title,
        lambda i, j: formats.count(confusion[i, j]) if confusion[i, j] else '',
        label='Confusion matrix, counts',
        warm=lambda i, j: i != j,
    )


def _large(confusion: np.ndarray, share: np.ndarray) -> tuple[Markup, float]:
    """The matrix as a picture; if there are more than PIXELS classes, neighbours share a cell."""
    starts = np.unique(np.linspace(0, len(share), PIXELS, endpoint=False).astype(int))
    merged = np.nan_to_num(confusion)
    merged = np.add.reduceat(np.add.reduceat(merged, starts, 0), starts, 1)
    merged = merged / np.maximum(merged.sum(1, keepdims=True), 1e-9)
    right = np.eye(len(merged)) > 0
    top = max(float(np.where(right, 0, merged).max()), FAINT)
    blue, orange = heatmaps.rgba(merged), heatmaps.rgba(merged / top, palette.HEAT_WARM)
    picture = np.where(right[..., None], blue, orange)
    label = (
        f'Confusion matrix of {len(share)} classes; mean of the diagonal '
        f'{formats.percent(float(np.nanmean(np.diag(share))))}'
    )
    return heatmaps.image(
        picture,
        label,
        across='predicted class',
        down='true class',
        size=share.shape,
        height=520,
        width=540,
    ), top


def _pairs(confusion: np.ndarray, wrong: np.ndarray, names: list[str]) -> Markup | None:
    rows = []
    for flat in np.argsort(-wrong, axis=None, kind='stable')[:10].tolist():
        i, j = divmod(flat, len(wrong))
        if wrong[i, j] > 0:
            images, share = float(confusion[i, j]), float(wrong[i, j])
            rows.append(
                (
                    name_of(names, i),
                    name_of(names, j),
                    formats.count(images),
                    formats.percent(share),
                )
            )
    if not rows:
        return None
    return table(
        ('truth', 'predicted', 'images', 'share of the class'),
        rows,
        class_='numbers',
        label='Most frequent confusions',
    )
