"""Draws heat maps: tables of coloured cells, or pictures if a matrix is too large to read.

A cell has one hue, more opaque for a higher value, which works on light and dark pages.
Axis letters: M rows, N columns.
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moe_vision.report import figure, palette
from moe_vision.report.markup import Child, Markup, table, tag


def cells(
    values: np.ndarray,
    head: Sequence[Child],
    names: Sequence[str],
    top: float,
    title: Callable[[int, int], str],
    show: Callable[[int, int], str],
    *,
    label: str,
    warm: Callable[[int, int], bool] = lambda i, j: False,
) -> Markup:
    """A table whose cells are coloured by value and show their numbers when pointed at.

    Args:
        values: `[M, N]`, drawn in full colour from `top` up.
        head: the column heads, the corner first.
        names: the row names.
        top: the value of full colour.
        title: the tooltip of a cell.
        show: the text in a cell.
        label: what the table is, for screen readers.
        warm: which cells take the second hue.
    """

    def cell(i: int, j: int) -> Markup:
        depth = min(float(np.nan_to_num(values[i, j])) / max(top, 1e-12), 1.0)
        kinds = [kind for kind, on in (('warm', warm(i, j)), ('deep', depth > 0.55)) if on]
        return tag(
            'td',
            show(i, j),
            title=title(i, j),
            class_=' '.join(kinds) or None,
            style=f'--a:{depth:.2f}' if depth >= 0.005 else None,
        )

    rows = (
        [tag('th', name, scope='row'), *(cell(i, j) for j in range(values.shape[1]))]
        for i, name in enumerate(names)
    )
    return table(head, rows, class_='heat', label=label)


def scale(top: str) -> Markup:
    """The key of a heat map: from nothing to full colour."""
    return tag('span', '0 ', tag('i', class_='ramp heat'), f' {top}', class_='scale')


def rgba(values: np.ndarray, colour: tuple[float, float, float] = palette.HEAT) -> np.ndarray:
    """Values 0..1 `[M, N]` as `[M, N, 4]`: the colour, more opaque for a higher value."""
    picture = np.empty((*values.shape, 4))
    picture[..., :3] = colour
    picture[..., 3] = np.nan_to_num(np.clip(values, 0, 1))
    return picture


def image(
    picture: np.ndarray,
    label: str,
    *,
    across: str,
    down: str,
    size: tuple[int, int],
    height: int,
    width: int,
) -> Markup:
    """A large matrix as a picture `[M, N, 4]`, its axes named and numbered up to `size`."""
    rows, columns = size

    def paint(axes: Axes) -> None:
        axes.grid(False)
        axes.imshow(
            picture,
            aspect='auto',
            interpolation='none',
            extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel(across)
        axes.set_ylabel(down)

    return figure.draw(paint, label, height=height, width=width, left=52)
