"""Draws the figures that a study declares, or writes the line that says why one is left out."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from moe_vision.common.json_values import as_dict, as_list
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.report import (
    cost_figure,
    gap_figures,
    k_figure,
    timing,
    training_figures,
    verdict_figure,
)
from moe_vision.study.report.chart import NoData
from moe_vision.study.report.document import Picture, Text

_KINDS = {
    'gap_against_rho': gap_figures.against_rho,
    'k_ablation': k_figure.k_ablation,
    'soft_axis': gap_figures.soft_axis,
    'traces': training_figures.traces,
}


def every(analysis: Analysis) -> Iterator[Picture | Text]:
    """All verdicts, accuracy against FLOPs, what the study declares, and routes if probed."""
    yield _draw(verdict_figure.verdicts, analysis, 'verdicts', 'All comparisons', {})
    yield _cost(analysis, 'accuracy_against_flops', 'Accuracy against FLOPs', ())
    for kind, name, title, series in _declared(analysis):
        if kind in _KINDS:
            yield _draw(_KINDS[kind], analysis, name, title, series)
        elif kind != 'wall_clock':
            yield Text(
                f'Figure “{title}” is left out: its kind is “{kind}”; known kinds are '
                f'{", ".join([*_KINDS, "wall_clock"])}.',
                'missing',
            )
    try:
        yield training_figures.agreement(analysis, 'agreement', 'Agreement of routes')
    except NoData:
        pass  # the section says that nothing was probed


def clock(analysis: Analysis, latency: Mapping[str, Any]) -> Iterator[Picture | Text]:
    """The figures that depend on a clock: those declared, or one of all that was measured."""
    asked = [d for d in _declared(analysis) if d[0] == 'wall_clock']
    if not asked and latency:
        asked = [('wall_clock', 'wall_clock', 'Accuracy against latency and throughput', {})]
    draw = functools.partial(timing.wall_clock, latency=latency)
    yield from (_draw(draw, analysis, name, title, series) for _, name, title, series in asked)


def cost(analysis: Analysis, timings: Mapping[str, Any]) -> Iterator[Picture | Text]:
    """Accuracy against FLOPs and every time that was measured; nothing if none was."""
    if times := cost_figure.times(analysis, timings):
        yield _cost(analysis, 'accuracy_against_time', 'Accuracy against FLOPs and time', times)


def _cost(
    analysis: Analysis, name: str, title: str, times: Sequence[cost_figure.Cost]
) -> Picture | Text:
    costs = [cost_figure.flops(analysis), *times]
    return _draw(cost_figure.accuracy_against, analysis, name, title, costs)


def _declared(analysis: Analysis) -> Iterator[tuple[str, str, str, dict[str, list[str]]]]:
    """(kind, name of its files, title, series) of every declared figure."""
    seen: dict[str, int] = {}
    for figure in map(as_dict, as_list(analysis.study.get('figures'))):
        kind = str(figure.get('kind', ''))
        seen[kind] = seen.get(kind, 0) + 1
        name = kind if seen[kind] == 1 else f'{kind}_{seen[kind]}'
        series = {
            str(label): [str(m) for m in members or ()]
            for label, members in as_dict(figure.get('series')).items()
        }
        yield kind, name, str(figure.get('title') or kind), series


def _draw(
    draw: Callable[..., Picture], analysis: Analysis, name: str, title: str, of: object
) -> Picture | Text:
    """The picture of `of`: series, or costs."""
    try:
        return draw(analysis, name, title, of)
    except NoData as why:
        return Text(f'Figure “{title}” is left out: {why}.', 'missing')
