"""Sample images with the experts they went to, and the most confident mistakes."""

import base64
import binascii
import math
import struct
from collections.abc import Callable
from typing import Any

from moe_vision.common.json_values import as_dict, as_list, number
from moe_vision.report import formats, palette
from moe_vision.report.formats import name_of
from moe_vision.report.markup import Markup, figure, missing, section, tag
from moe_vision.report.read import Run

BUDGET = 1_600_000  # bytes of images on the page; further images are left out and counted
CHIPS = 4  # most choices drawn as chips; more (soft routing) become one bar of weights
_PNG = b'\x89PNG\r\n\x1a\n'
_CHIPS = (
    'a chip shows the number of an expert and its gate; a choice that is struck through '
    'found no room and added nothing'
)
_SOFT = 'a bar is divided among the experts by their weights in this image’s output'
_PATCHES = (
    'a coloured square over an image is a patch, in the colour of the kept expert with the '
    'largest gate; a crossed square lost all its experts; point at an overlay to see the '
    'image beneath'
)


def render(run: Run) -> Markup:
    """The first images with their experts, then the most confident mistakes."""
    return section('samples', 'Images', _first(run), _mistakes(run))


def _within_budget(
    samples: list[dict[str, Any]], card: Callable[[dict[str, Any]], Markup]
) -> tuple[list[Markup], str]:
    """The cards of as many images as the budget allows, and the remark on the others."""
    shown, used = [], 0
    for sample in samples:
        used += len(str(sample.get('image_png')))
        if used > BUDGET:
            break
        shown.append(card(sample))
    left = len(samples) - len(shown)
    return shown, f' {left} more images are left out to keep this page small.' if left else ''


def _first(run: Run) -> list[Markup]:
    title = tag('h3', 'Images and their experts' if run.layers() else 'The first images')
    samples = [as_dict(s) for s in as_list(run.evaluation.get('samples'))]
    shown, left_out = _within_budget(samples, lambda sample: _card(run, sample))
    if not shown:
        return [title, missing('No sample images: nothing has been evaluated on the test set.')]
    page = ''.join(shown)
    kinds = (('class="chip', _CHIPS), ('class="bar"', _SOFT), ('route patches', _PATCHES))
    wide = 'wide' if 'route patches' in page and len(run.layers()) > 2 else ''
    marks = [words for mark, words in kinds if mark in page]
    wide = (wide or 'one' * (len(run.layers()) == 1)) if marks else 'plain'
    how = f'How to read: {"; ".join(marks) or "each image with its true and predicted class"}.'
    return [title, figure(tag('div', shown, class_=f'samples {wide}'), how + left_out)]


def _mistakes(run: Run) -> list[Markup]:
    title = tag('h3', 'The most confident mistakes')
    mistakes = run.evaluation.get('mistakes')
    if not isinstance(mistakes, list):
        return [title, missing('The most confident mistakes were not recorded.')]
    samples = [as_dict(m) for m in mistakes]
    if not samples:
        return [title, tag('p', f'No image of the {run.scored} set was mistaken.')]
    shown, left_out = _within_budget(samples, lambda sample: _mistake(run, sample))
    how = (
        f'How to read: the {len(shown)} images of the {run.scored} set with the highest '
        'probability of a wrong class, the most confident first: the true class, the class that '
        'each was taken for with its probability, and the name of its file. A label may be '
        'wrong here, too.'
    )
    return [title, figure(tag('div', shown, class_='samples mistakes'), how + left_out)]


def png_size(encoded: Any) -> tuple[int, int] | None:
    """Width and height of a base64 PNG, or None if it is not one."""
    try:
        data = base64.b64decode(str(encoded), validate=True)
        width, height = struct.unpack('>II', data[16:24])
    except (binascii.Error, ValueError, struct.error):
        return None
    return (width, height) if data[:8] == _PNG and 0 < width < 1e5 and 0 < height < 1e5 else None


def _classes(run: Run, sample: dict[str, Any]) -> tuple[str, str]:
    """The true and the predicted class of an image; '?' where they are not known."""
    names = run.class_names()
    numbers = (number(sample.get(key)) for key in ('label', 'prediction'))
    truth, guess = (name_of(names, int(v)) if math.isfinite(v) else '?' for v in numbers)
    return truth, guess


def _picture(sample: dict[str, Any], truth: str, guess: str) -> tuple[Markup, str, str, str | None]:
    """An image, the class and size of its box, and the style of the card that holds the pixels."""
    size = png_size(sample.get('image_png'))
    style, box = None, 'width:96px;height:96px'
    if size:
        scale = 96 / max(size)
        box = f'width:{size[0] * scale:.0f}px;height:{size[1] * scale:.0f}px'
        style = f'--png:url(data:image/png;base64,{sample["image_png"]})'
    kind = 'image' + (' tiny' if size and max(size) <= 64 else '') + ('' if size else ' broken')
    picture = tag(
        'span',
        None if size else 'unreadable image',
        class_=kind,
        role='img',
        style=box,
        aria_label=f'An image of class {truth}, predicted as {guess}',
    )
    return picture, kind, box, style


def _card(run: Run, sample: dict[str, Any]) -> Markup:
    truth, guess = _classes(run, sample)
    right = number(sample.get('label')) == number(sample.get('prediction'))
    picture, kind, box, style = _picture(sample, truth, guess)
    outcome = '✓ right' if right else f'✕ taken for {guess}'
    caption = (
        tag('strong', truth, title=truth),
        tag('span', outcome, title=outcome, class_='good' if right else 'bad'),
    )
    routes = as_dict(sample.get('layers'))
    short = formats.apart(list(routes))
    layers = [_layer(run, n, short[n], as_dict(r), kind, box) for n, r in routes.items()]
    return tag(
        'div',
        tag('div', picture, tag('p', caption), class_='what'),
        tag('div', layers, class_='routes') if layers else None,
        class_='sample',
        style=style,
    )


def _mistake(run: Run, sample: dict[str, Any]) -> Markup:
    truth, guess = _classes(run, sample)
    picture, _, _, style = _picture(sample, truth, guess)
    index, file = number(sample.get('index')), sample.get('file')
    place = f'image {formats.count(index)}' if math.isfinite(index) else None
    name = file if isinstance(file, str) and file else place or 'unnamed'
    caption = (
        tag('strong', truth, title=truth),
        tag('span', f'✕ taken for {guess}', title=f'taken for {guess}', class_='bad'),
        tag('span', formats.percent(number(sample.get('probability')))),
    )
    return tag(
        'div',
        picture,
        tag('p', caption),
        tag('code', name, title=place),
        class_='sample what',
        style=style,
    )


def _layer(run: Run, layer: str, short: str, route: dict[str, Any], kind: str, box: str) -> Markup:
    tokens = [as_list(t) for t in as_list(route.get('experts'))]
    gates, kept = as_list(route.get('gates')), as_list(route.get('kept'))
    choices = [_choices(t, _at(gates, i), _at(kept, i)) for i, t in enumerate(tokens)]
    grid = [int(g) for g in map(number, as_list(route.get('grid'))) if g >= 1]
    title = tag('span', short, class_='name', title=layer)
    if len(grid) == 2 and grid[0] * grid[1] == len(choices):
        return tag('div', title, _overlay(layer, choices, grid, kind, box), class_='route patches')
    if len(choices) != 1 or not choices[0]:
        return tag('div', title, tag('span', 'not recorded', class_='note'), class_='route')
    if len(choices[0]) > CHIPS:
        return tag('div', title, _bar(choices[0]), class_='route')
    experts = run.num_experts(layer)
    return tag('div', title, (_chip(*c, experts) for c in choices[0]), class_='route')


def _at(values: list[Any], index: int) -> list[Any]:
    return as_list(values[index]) if index < len(values) else []


def _choices(experts: list, gates: list, kept: list) -> list[tuple[int, float, bool]]:
    """(expert, gate, kept) of each choice of a token; NaN and True where not known."""
    return [
        (
            int(number(e)),
            number(gates[i]) if i < len(gates) else math.nan,
            bool(kept[i]) if i < len(kept) else True,
        )
        for i, e in enumerate(experts)
        if math.isfinite(number(e))
    ]


def _chip(expert: int, gate: float, kept: bool, experts: int) -> Markup:
    null = experts and expert >= experts or expert < 0
    colour = palette.NO_EXPERT if null else palette.expert(expert)
    name = 'no expert' if null else str(expert)
    weight = f'{gate:.2f}' if math.isfinite(gate) else ''
    words = f'expert {name}, gate {weight or "unknown"}' + ('' if kept else ', dropped: no room')
    inside = (tag('b', name), ' ', weight)
    return tag(
        'span',
        inside if kept else tag('s', inside),
        title=words,
        class_='chip' if kept else 'chip dropped',
        style=f'--c:{colour};--t:{palette.ink_on(colour)}',
    )


def _bar(choices: list[tuple[int, float, bool]]) -> Markup:
    weights = [max(g, 0.0) if math.isfinite(g) else 0.0 for _, g, _ in choices]
    whole = sum(weights) or 1.0
    best = choices[weights.index(max(weights))]
    parts = [
        tag(
            'i',
            title=f'expert {e}: {w:.3f}',
            style=f'width:{100 * w / whole:.2f}%;background:{palette.expert(e)}',
        )
        for (e, _, _), w in zip(choices, weights, strict=True)
        if w / whole >= 0.001
    ]
    label = f'Weights over {len(choices)} experts; expert {best[0]} has the largest'
    return Markup(
        tag('span', parts, class_='bar', role='img', aria_label=label)
        + tag('span', f'largest: {best[0]} ({best[1]:.2f})', class_='note')
    )


def _overlay(
    layer: str, choices: list[list[tuple[int, float, bool]]], grid: list[int], kind: str, box: str
) -> Markup:
    rows, columns = grid
    squares: dict[int, str] = {}
    crosses = ''
    for i, token in enumerate(choices):
        y, x = divmod(i, columns)
        alive = [c for c in token if c[2]]
        if not alive:
            crosses += f'M{x + 0.2:g} {y + 0.2:g}l.6 .6m0-.6l-.6 .6'
            continue
        best = max(alive, key=lambda c: c[1] if math.isfinite(c[1]) else 0.0)[0]
        squares[best] = squares.get(best, '') + f'M{x} {y}h1v1h-1z'
    paths = [
        tag(
            'path', tag('title', f'expert {e}: {d.count("M")} patches'), d=d, fill=palette.expert(e)
        )
        for e, d in sorted(squares.items())
    ]
    cross = tag('path', d=crosses, class_='cross') if crosses else None
    most = sorted(squares, key=lambda e: -squares[e].count('M'))[:3]
    label = (
        f'{rows} × {columns} patches coloured by expert, {layer}; most go to '
        f'{", ".join(str(e) for e in most) or "none"}'
    )
    drawing = tag(
        'svg',
        paths,
        cross,
        viewBox=f'0 0 {columns} {rows}',
        role='img',
        aria_label=label,
        preserveAspectRatio='none',
    )
    return tag('span', drawing, class_=kind, style=box)
