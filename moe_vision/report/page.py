"""Puts the sections of a run together into one HTML file."""

from moe_vision.report import health, markup
from moe_vision.report.read import Run
from moe_vision.report.sections import classes, curves, overview, routing, samples, setup

_ANCHORS = [
    ('health', 'Health'),
    ('curves', 'Training'),
    ('routing', 'Routing'),
    ('classes', 'Classes'),
    ('samples', 'Images'),
    ('compute', 'Compute'),
    ('record', 'Record'),
]


def render(run: Run) -> str:
    """The page of a run, complete from doctype to footer."""
    verdict = health.judge(run)
    sections = (
        overview.cards(run),
        overview.health(run, verdict),
        curves.render(run),
        routing.render(run),
        classes.render(run),
        samples.render(run),
        setup.compute(run),
        setup.record(run),
    )
    return markup.page(
        'Training report',
        run.name,
        overview.facts(run),
        _ANCHORS,
        sections,
        verdict=overview.verdict(verdict),
        policy='; img-src data:',
        source='the files in this run’s folder',
        command='python -m moe_vision.report --workdir=W',
    )
