"""Makes HTML, and escapes all text that is not `Markup` already.

Class names, file names and config values are other people's input. Only this module turns them into
HTML, so that escaping cannot be forgotten elsewhere.
"""

import html
from collections.abc import Iterable, Sequence

from moe_vision.report import style

_VOID = frozenset({'br', 'hr', 'img', 'meta', 'col'})


class Markup(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


Child = str | int | float | None | Iterable['Child']


def text(child: Child) -> Markup:
    """A child as HTML: `Markup` stays, other text is escaped, iterables are joined."""
    if child is None:
        return Markup('')
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int | float):
        return Markup(html.escape(str(child), quote=True))
    return Markup(''.join(text(c) for c in child))


def tag(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """One element. `class_` is `class`, `aria_label` is `aria-label`; None and False leave out.

    >>> tag('td', '<b>', class_='x')
    '<td class="x">&lt;b&gt;</td>'
    """
    opening = name
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        opening += f' {key.rstrip("_").replace("_", "-")}'
        if value is not True:
            opening += f'="{html.escape(str(value), quote=True)}"'
    if name in _VOID:
        return Markup(f'<{opening}>')
    return Markup(f'<{opening}>{text(children)}</{name}>')


def table(
    head: Iterable[Child],
    rows: Iterable[Iterable[Child]],
    *,
    class_: str = '',
    label: str | None = None,
) -> Markup:
    """A table; a cell that is `Markup` starting with `<td` or `<th` is taken as the cell itself."""

    def cell(child: Child) -> Markup:
        if isinstance(child, Markup) and child.startswith(('<td', '<th')):
            return child
        return tag('td', child)

    body = (tag('tr', (cell(c) for c in row)) for row in rows)
    header = tag('tr', (c if _is_cell(c) else tag('th', c, scope='col') for c in head))
    content = tag(
        'table', tag('thead', header), tag('tbody', body), class_=class_ or None, aria_label=label
    )
    return tag('div', content, class_='scroll')


def _is_cell(child: Child) -> bool:
    return isinstance(child, Markup) and child.startswith('<th')


def figure(picture: Child, how: Child) -> Markup:
    """A picture with the sentence that says how to read it."""
    return tag('figure', picture, tag('figcaption', how))


def panel(title: Child, picture: Child, note: Child = None) -> Markup:
    """One of several small pictures side by side, under its own title."""
    small = tag('p', note, class_='note') if note else None
    return tag('div', tag('h4', title), picture, small, class_='panel')


def grid(panels: Sequence[Child], how: Child, *, width: int = 330, wide: bool = False) -> Markup:
    """Small multiples, each at least `width` pixels wide, and how to read them.

    Args:
        wide: whether one or two panels fill the page's width (`figure.width_of`).
    """
    few = {1: ' one', 2: ' two'}.get(len(panels), '') if wide else ''
    return figure(tag('div', panels, class_='grid' + few, style=f'--w:{width}px'), how)


def missing(words: str) -> Markup:
    """The sentence in place of something that is missing."""
    return tag('p', words, class_='missing')


def card(name: Child, value: Child, note: Child, *, big: bool = False) -> Markup:
    """A number to remember, with its name above and a note below."""
    return tag(
        'div',
        tag('span', name, class_='name'),
        tag('span', value, class_='value'),
        tag('span', note, class_='note'),
        class_='card big' if big else 'card',
    )


def section(anchor: str, title: str, *children: Child) -> Markup:
    """A part of the page that the navigation can jump to."""
    return tag('section', tag('h2', title), children, id=anchor)


def page(
    kind: str,
    name: str,
    facts: str,
    anchors: Iterable[tuple[str, str]],
    sections: Child,
    *,
    source: str,
    command: str,
    verdict: Child = None,
    css: str = '',
    policy: str = '',
) -> str:
    """A whole HTML file that needs nothing else, from doctype to footer.

    Args:
        kind, name, facts: the line above the title, the title, and the line below it.
        anchors: (anchor, title) of each section, for the links.
        source: what the page is made from, for the footer.
        command: the command that makes it again.
        verdict: a line between facts and links.
        css: rules in addition to those of `style`.
        policy: what the page may load in addition to its own styles.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'" + policy
    head = tag(
        'head',
        tag('meta', charset='utf-8'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
        tag('meta', name='color-scheme', content='light dark'),
        tag('title', f'{name} · {kind.lower()}'),
        tag('style', Markup(style.CSS + css)),
    )
    links = (tag('a', title, href=f'#{anchor}') for anchor, title in anchors)
    top = tag(
        'header',
        tag('p', kind, class_='eyebrow'),
        tag('h1', name),
        tag('p', facts, class_='facts'),
        verdict,
        tag('nav', links, aria_label='Parts of this page'),
    )
    footer = tag('footer', f'Made from {source}. To make it again: ', tag('code', command), '.')
    body = tag('body', top, tag('main', sections), footer)
    return '<!doctype html>\n' + tag('html', head, body, lang='en')
