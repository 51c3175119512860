"""The document as one HTML file that needs nothing else, in the look of a run's report."""

from moe_vision.report import style
from moe_vision.report.markup import Child, Markup, section, table, tag
from moe_vision.study.report import document
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
)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_MARK = {'positive': '▲', 'negative': '▼', 'equivalent': '≈', 'inconclusive': '?'}
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


def render(whole: Document) -> str:
    """The page, complete from doctype to footer."""
    links = [tag('a', s.title, href=f'#{s.anchor}') for s in whole.sections]
    head = tag(
        'head',
        tag('meta', charset='utf-8'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
        tag('meta', name='color-scheme', content='light dark'),
        tag('title', f'{_clean(whole.title)} · {whole.kind.lower()}'),
        tag('style', Markup(style.CSS + _CSS)),
    )
    body = tag(
        'body',
        tag(
            'header',
            tag('p', whole.kind, class_='eyebrow'),
            tag('h1', _clean(whole.title)),
            tag('p', _clean(whole.facts), class_='facts'),
            tag('nav', links, aria_label='Parts of this page'),
        ),
        tag('main', (section(s.anchor, s.title, map(_block, s.blocks)) for s in whole.sections)),
        tag('footer', 'Made from the rows of the study; write it anew with ',
            tag('code', 'python -m moe_vision.study report --workdir=W'), '.'),
    )
    return '<!doctype html>\n' + tag('html', head, body, lang='en')


def _clean(text: str) -> str:
    return document.clean_all(text)


def _words(words: Words) -> list[Child]:
    return [_span(span) for span in document.spans(words)]


def _span(span: str) -> Child:
    if isinstance(span, Verdict):
        mark = tag('i', _MARK.get(span, '·'), aria_hidden='true')
        return tag('span', mark, str(span), class_=f'v {span if span in _MARK else "none"}')
    if isinstance(span, Name):
        return tag('code', _clean(span))
    return _clean(span)


def _cell(words: Words) -> Child:
    inner = _words(words)
    long = sum(map(len, document.spans(words))) > 60
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
            return tag('h3', _clean(words))
        case Bullets(items):
            return tag('ul', (tag('li', _words(item)) for item in items))
        case Cards(items):
            return tag('div', (_card(*item) for item in items), class_='cards')
        case Table(head, rows, label):
            return table(head, ((_cell(cell) for cell in row) for row in rows), class_='numbers',
                         label=label or None)
        case Picture():
            return _picture(block)


def _card(what: str, number: str, note: str) -> Markup:
    return tag('div', tag('span', what, class_='name'), tag('span', number, class_='value'),
               tag('span', note, class_='note'), class_='card')


def _picture(picture: Picture) -> Markup:
    width = picture.svg.split('viewBox="', 1)[1].split('"', 1)[0].split()[2]
    caption = tag('figcaption', picture.how)
    return tag('figure', tag('h3', _clean(picture.title)), picture.svg, caption, class_='picture',
               style=f'--w:{1.15 * float(width):.0f}px')
