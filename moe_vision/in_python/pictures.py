"""Draws a run's history, and the experts to which the parts of images go.

Axes: B images, H and W height and width, C channels, T tokens of an image, K choices.
"""

import io
import math
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from moe_vision.common.paths import in_order
from moe_vision.in_python.table import Table
from moe_vision.predict.model import Prediction

_NUMBERED = 100  # patches of an image up to which each one's expert is written into it


class Picture(Figure):
    """A figure of matplotlib that notebooks show. `savefig('x.png')` keeps it."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format='png', bbox_inches='tight')
        return out.getvalue()


def history(table: Table, name: str) -> Picture:
    """Loss, accuracy and, if the network routes, the load of the last routed layer's experts."""
    loads = in_order(c for c in table.columns if c.startswith('layers.') and c.endswith('.load'))
    picture = Picture(figsize=(4.2 * (2 + bool(loads)), 3.2), layout='constrained')
    axes = picture.subplots(1, 2 + bool(loads), squeeze=False)[0]
    for axis, column in zip(axes, ('loss', 'accuracy'), strict=False):
        for split, marker in (('train', ''), ('validation', 'o')):
            rows = [r for r in table.where(split=split) if r.get(column) is not None]
            steps, values = ([r[n] for r in rows] for n in ('step', column))
            axis.plot(steps, values, marker=marker, markersize=4, label=split)
        axis.set(title=column, xlabel='step')
        axis.legend()
    if loads:
        rows = [r for r in table.where(split='train') if r.get(loads[-1]) is not None]
        axes[2].plot([r['step'] for r in rows], [r[loads[-1]] for r in rows])
        layer = loads[-1].removeprefix('layers.').removesuffix('.load')
        axes[2].set(title=f'load of each expert, {layer}', xlabel='step', ylim=(0, None))
    picture.suptitle(name)
    return picture


def routes(images: np.ndarray, prediction: Prediction, layer: str, names: Any) -> Picture:
    """Images with each patch in the colour of the expert that it chose first, and its number.

    Where whole images are routed, the expert is named above each.

    Args:
      images: uint8 [B, H, W, C].
      prediction: of these images.
      names: of the classes.
    """
    chosen = prediction.layers[layer]
    first = np.take_along_axis(chosen['expert'], chosen['gate'].argmax(-1)[..., None], -1)[..., 0]
    count = int(chosen['expert'].max()) + 1
    columns = min(len(images), 8)
    rows = math.ceil(len(images) / columns)
    picture = Picture(figsize=(1.7 * columns, 1.95 * rows), layout='constrained')
    axes = picture.subplots(rows, columns, squeeze=False).ravel()
    colours = colormaps['tab20' if count > 10 else 'tab10']
    for axis, image, experts, p in zip(axes, images, first, prediction.probabilities, strict=False):
        height, width = image.shape[:2]
        axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap='gray')
        title = str(names[int(p.argmax())])
        if len(experts) == 1:
            title += f' → {experts[0]}'
        else:
            high, wide, skip = grid(len(experts), height, width)
            cells = experts[skip:].reshape(high, wide)
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axis.imshow(colours(cells % colours.N), alpha=0.55, extent=extent)
            if cells.size <= _NUMBERED:
                for (y, x), expert in np.ndenumerate(cells):
                    at = ((x + 0.5) * width / wide - 0.5, (y + 0.5) * height / high - 0.5)
                    axis.text(*at, str(expert), ha='center', va='center', fontsize=7)
        axis.set_title(title, fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    picture.suptitle(f'{layer}: first choices')
    return picture


def grid(tokens: int, height: int, width: int) -> tuple[int, int, int]:
    """(rows, columns, tokens before them) of an image's patches: a class token may come first.

    Raises:
      ValueError: these tokens are no grid of this image.
    """
    for skip in (0, 1):
        patches = tokens - skip
        high = round(math.sqrt(patches * height / width)) or 1
        wide = patches // high
        if high * wide == patches and high * width == wide * height:  # patches are square
            return high, wide, skip
    raise ValueError(f'{tokens} tokens are no grid of an image of {height} x {width} pixels')
