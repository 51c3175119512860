"""Renders the document as one self-contained HTML file that looks like a run's report."""

from moe_vision.report.markup import Child, Markup, card, page, section, table, tag
from moe_vision.study.analysis.verdicts import decided
from moe_vision.study.report.document import (
    Block,
    Bullets,
    Cards,
    Document,
    Heading,
    Name,
    Picture,
    Table,
    Text,
    Verdict,
    Words,
    clean_all,
    spans,
)

_MARK = {
    'positive': '▲',
    'negative': '▼',
    'positive, within the margin': '≈▲',
    'negative, within the margin': '≈▼',
    'equivalent': '≈',
    'inconclusive': '?',
}
_CSS = """
.picture{margin:26px 0 34px}.picture .chart{max-width:var(--w)}
.picture h3{margin:0 0 8px}.picture figcaption{margin-top:8px}
main>section>p,main>section>ul{max-width:94ch}.verdict.study{--v:var(--accent)}
.v{font-weight:620;white-space:nowrap}.v i{font-style:normal;margin-right:4px}
.v.positive{color:var(--accent)}.v.negative{color:var(--warm)}.v.inconclusive{color:var(--muted)}
.numbers td{white-space:nowrap;max-width:none}.numbers td.long{white-space:normal;min-width:280px;
max-width:620px}.numbers thead th{max-width:116px;vertical-align:bottom}
.numbers td:first-child{position:sticky;left:0;background:var(--paper)}
"""


def render(document: Document) -> str:
    """The page, complete from doctype to footer."""
    anchors = [(s.anchor, s.title) for s in document.sections]
    sections = (section(s.anchor, s.title, map(_block, s.blocks)) for s in document.sections)
    return page(
        document.kind,
        clean_all(document.title),
        clean_all(document.facts),
        anchors,
        sections,
        css=_CSS,
        source='the rows of the study',
        command='python -m moe_vision.study report --workdir=W',
    )


def _words(words: Words) -> list[Child]:
    return [_span(span) for span in spans(words)]


def _span(span: str) -> Child:
    if isinstance(span, Verdict):
        mark = tag('i', _MARK.get(span, '·'), aria_hidden='true')
        kind = decided(span) if span in _MARK else 'none'
        return tag('span', mark, str(span), class_=f'v {kind}')
    if isinstance(span, Name):
        return tag('code', clean_all(span))
    return clean_all(span)


def _cell(words: Words) -> Child:
    inner = _words(words)
    long = sum(map(len, spans(words))) > 60
    return tag('td', inner, class_='long' if long else None)


def _block(block: Block) -> Child:
    match block:
        case Text(words, 'headline'):
            mark = tag('span', '→', class_='mark', aria_hidden='true')
            return tag('p', mark, tag('span', _words(words)), class_='verdict study')
        case Text(words, 'plain'):
            return tag('p', _words(words))
        case Text(words, kind):
            return tag('p', _words(words), class_=kind)
        case Heading(words):
            return tag('h3', clean_all(words))
        case Bullets(items):
            return tag('ul', (tag('li', _words(item)) for item in items))
        case Cards(items):
            return tag('div', (card(*item) for item in items), class_='cards')
        case Table(head, rows, label):
            return table(
                head,
                ((_cell(cell) for cell in row) for row in rows),
                class_='numbers',
                label=label or None,
            )
        case Picture():
            return _picture(block)


def _picture(picture: Picture) -> Markup:
    width = picture.svg.split('viewBox="', 1)[1].split('"', 1)[0].split()[2]
    return tag(
        'figure',
        tag('h3', clean_all(picture.title)),
        picture.svg,
        tag('figcaption', picture.how),
        class_='picture',
        style=f'--w:{1.15 * float(width):.0f}px',
    )
