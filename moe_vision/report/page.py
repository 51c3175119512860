"""Puts the parts together into one HTML file that needs nothing else."""

from moe_vision.report import health, style
from moe_vision.report.markup import Markup, tag
from moe_vision.report.read import Run
from moe_vision.report.sections import classes, curves, overview, routing, samples, setup

_ANCHORS = [
    ('health', 'Health'), ('curves', 'Training'), ('routing', 'Routing'), ('classes', 'Classes'),
    ('samples', 'Images'), ('compute', 'Compute'), ('record', 'Record'),
]  # fmt: skip
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render(run: Run) -> str:
    """The page of a run, complete from doctype to footer."""
    verdict = health.judge(run)
    head = tag(
        'head',
        tag('meta', charset='utf-8'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
        tag('meta', name='color-scheme', content='light dark'),
        tag('title', f'{run.name} · training report'),
        tag('style', Markup(style.CSS)),
    )
    body = tag(
        'body',
        overview.header(run, verdict, _ANCHORS),
        tag(
            'main',
            overview.cards(run),
            overview.health(run, verdict),
            curves.render(run),
            routing.render(run),
            classes.render(run),
            samples.render(run),
            setup.compute(run),
            setup.record(run),
        ),
        tag('footer', 'Made from the files in this run’s folder; write it anew with ',
            tag('code', 'python -m moe_vision.report --workdir=W'), '.'),
    )
    return '<!doctype html>\n' + tag('html', head, body, lang='en')
