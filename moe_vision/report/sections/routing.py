"""Where tokens went: load per expert over time, drops, balance and entropy."""

import math
from collections.abc import Callable

import numpy as np

from moe_vision.common.json_values import as_list, number, value_at
from moe_vision.report import charts, figure, formats, markup, palette
from moe_vision.report.charts import MANY, Series
from moe_vision.report.markup import Markup, grid, missing, panel, section, table, tag
from moe_vision.report.read import Run, vector
from moe_vision.report.sections.curves import column, counted, steps, thinned

_LOAD = (
    'How to read: each band is one expert’s share of the choices before capacity. If routing '
    'is balanced, the edges of the bands lie on the dotted lines; in a collapse, few bands '
    'fill the panel.'
)
_LOAD_MANY = (
    'How to read: each row is one expert, each column a time. The stronger the colour, '
    'the larger its share of the choices; full colour is the largest share in the panel.'
)
_BARS = (
    'How to read: the pale bar is the share of all choices that went to an expert, the full '
    'bar the share that found room in its buffer; the dashed line is an even split.'
)
_TIME = (
    'How to read: {curves}. A dashed line is the value of perfectly even routing or, for drops, '
    'the limit above which this page warns.'
)
_ONE, _MANY = 'a curve is', 'one curve per routed layer, from teal (first) to magenta (last), is'


def render(run: Run) -> Markup:
    """Everything about routing except classes and images."""
    layers = run.layers()
    if not layers:
        words = (
            'Nothing is routed in this run, so there is no routing to show.'
            if run.rows
            else 'No routing has been recorded yet.'
        )
        return section('routing', 'Routing', missing(words))
    rows = run.routed_rows()
    return section(
        'routing',
        'Routing',
        tag('p', counted(run), class_='note'),
        tag('h3', 'Load over training'),
        _loads(run, layers, rows),
        tag('h3', 'Balance over training'),
        _balance(run, layers, rows),
        tag('h3', 'Newest load and capacity' if run.can_drop else 'Newest load'),
        _newest(run, layers),
    )


def load_over_time(rows: list[dict], layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[N]` and loads `[N, E]` of a layer; a row that lacks a load is NaN throughout."""
    loads = [vector(value_at(row, 'layers', layer, 'load')) for row in rows]
    experts = max((load.size for load in loads), default=0)
    whole = np.full((len(rows), experts), math.nan)
    for i, load in enumerate(loads):
        if load.size == experts and np.isfinite(load).all():
            whole[i] = load
    return steps(rows), whole


def _loads(run: Run, layers: list[str], rows: list[dict]) -> Markup:
    panels, many, width = [], False, figure.width_of(len(layers))
    for layer in layers:
        x, load = load_over_time(rows, layer)
        if not load.size or not (load.sum(1) > 0).any():
            panels.append(panel(layer, None, 'No load was recorded for this layer.'))
            continue
        many |= load.shape[1] > MANY
        note = None
        if load.shape[1] > MANY:
            note = (
                f'full colour: {formats.percent(np.nanmax(load))} of choices; '
                f'even: {formats.percent(1 / load.shape[1])}'
            )
        picture = charts.shares(x, load, f'Load of {layer} over training', width)
        panels.append(panel(layer, picture, note))
    return grid(panels, (_LOAD_MANY if many else _LOAD) + thinned(rows), wide=True)


def _balance(run: Run, layers: list[str], rows: list[dict]) -> Markup:
    experts = {run.num_experts(layer) for layer in layers}
    same = experts.pop() if len(experts) == 1 else 0
    even = (float(same), f'E = {same}') if same > 1 else None
    entropy = (math.log(same), 'ln E') if same > 1 else None

    names = formats.apart(layers)
    trained = any(row.get('split') == 'train' for row in rows)
    validations = run.split('validation') if trained else []
    limit = run.drop_limit

    def make(
        key: str,
        title: str,
        form: Callable[[float], str] = formats.significant,
        *,
        reference: tuple[float, str] | None = None,
        low: float | None = 0.0,
        when: Callable[[np.ndarray], bool] = lambda values: True,
    ) -> Markup | None:
        series = [
            Series(
                names[layer] + (' in validation' if dots else ''),
                steps(part),
                column(part, 'layers', layer, key),
                palette.depth(i, len(layers))
                if len(layers) > 1
                else (palette.ACCENT, palette.WARM)[dots],
                dots=dots,
            )
            for dots, part in ((False, rows), (True, validations))
            for i, layer in enumerate(layers)
        ]
        shown = [s for s in series if s and when(s.y)]
        if not any(not s.dots for s in shown):
            return None
        return panel(title, charts.lines(shown, title, form, reference=reference, low=low))

    percent = formats.share
    panels = [
        make(
            'drop_rate',
            'Dropped choices',
            percent,
            reference=(limit, formats.share(limit)),
            when=_positive,
        ),
        make('orphan_rate', 'Orphans: tokens that lose all choices', percent, when=_positive),
        make('max_over_mean', 'Fullest expert ÷ even load', reference=(1.0, 'even')),
        make('effective_experts', 'Effective experts, 1/Σ load²', reference=even),
        make('gate_entropy', 'Gate entropy, nats per token', reference=entropy),
        make('dead_experts', 'Dead experts', when=_positive),
        make('mutual_information', 'I(expert; class), nats'),
        make('router_information', 'I(expert; token), nats'),
        make('temperature', 'Router temperature', when=_varies),
        make('choices_per_token', 'Choices per token', when=_varies),
        make('null_rate', 'Choices of no expert', percent, when=_positive),
    ]
    quiet = [
        name
        for name, at in (('choices dropped', 0), ('orphans', 1), ('dead experts', 5))
        if panels[at] is None
    ]
    remark = f' Not drawn, because never above zero or not recorded: {", ".join(quiet)}.'
    dots = ', dots are validation' if validations else ''
    curves = f'{_ONE if len(layers) == 1 else _MANY} training{dots}'
    how = _TIME.format(curves=curves) + (remark if quiet else '')
    return grid([p for p in panels if p], how)


def _positive(values: np.ndarray) -> bool:
    return bool(np.nanmax(values) > 0)


def _varies(values: np.ndarray) -> bool:
    return bool(np.nanmax(values) - np.nanmin(values) > 1e-6)


def _newest(run: Run, layers: list[str]) -> Markup:
    panels, rows, width = [], [], figure.width_of(max(len(layers), 2))
    for layer in layers:
        values, where, _ = run.latest(layer)
        load, kept = vector(values.get('load')), vector(values.get('load_kept'))
        drops = number(values.get('drop_rate'))
        if load.size and np.nansum(load) > 0:
            load = load / np.nansum(load)
            if kept.size != load.size or not np.nansum(kept) > 0:
                kept = load
            elif math.isfinite(drops):
                kept = kept / np.nansum(kept) * (1 - drops)
            panels.append(
                panel(layer, charts.bars(load, kept, f'Load of {layer} {where}', width), where)
            )
        form = (
            ('effective_experts', formats.significant),
            ('dead_experts', formats.count),
            ('max_over_mean', formats.significant),
            ('drop_rate', formats.percent),
            ('orphan_rate', formats.percent),
            ('gate_entropy', formats.significant),
            ('mutual_information', formats.significant),
        )
        rows.append(
            [
                tag('th', layer, scope='row'),
                str(len(as_list(values.get('load')))),
                *(show(number(values.get(key))) for key, show in form),
            ]
        )
    head = (
        'layer',
        'experts',
        'effective',
        'dead',
        'fullest ÷ even',
        'dropped',
        'orphans',
        'gate entropy',
        'I(expert; class)',
    )
    label = 'Routing per layer in numbers'
    if len(layers) > 1 or not panels:
        return Markup(
            grid(panels, _BARS, wide=True) + table(head, rows, class_='numbers', label=label)
        )
    columns = [
        (tag('th', key, scope='row'), cell) for key, cell in zip(head[1:], rows[0][1:], strict=True)
    ]
    listing = table(('', layers[0]), columns, class_='numbers', label=label)
    return markup.figure(tag('div', panels, listing, class_='beside'), _BARS)
