"""Defines the parts of a report, and writes them as Markdown (`page` writes HTML).

Words are text with `Name`s and `Verdict`s in it. A name is other people's input, and both forms of
the report escape it like all other text.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from moe_vision.report.markup import Markup
from moe_vision.report.read import clean


class Name(str):
    """Text set as code: the name of an arm, a comparison or a file."""

    __slots__ = ()


class Verdict(str):
    """A verdict on a gap, one of `types.Outcome`."""

    __slots__ = ()


Words = str | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph.

    kind: `plain`; `headline`, what to remember; `missing`, what is missing; or `note`, small.
    """

    words: Words
    kind: str = 'plain'


@dataclasses.dataclass(frozen=True)
class Heading:
    words: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    items: Sequence[Words]


@dataclasses.dataclass(frozen=True)
class Cards:
    """Numbers to remember: (what, the number, a note)."""

    items: Sequence[tuple[str, str, str]]


@dataclasses.dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[Words]]
    label: str = ''


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure and the numbers drawn in it.

    Attributes:
      name: the name of its files, without ending.
      title: the line above it; other people's input.
      svg: the drawing, for a page.
      how: how to read it.
      head, rows: the numbers, as its file has them.
    """

    name: str
    title: str
    svg: Markup
    how: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]


Block = Text | Heading | Bullets | Cards | Table | Picture


@dataclasses.dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Document:
    title: str
    kind: str  # above the title
    facts: str  # below it
    sections: Sequence[Section]


_SPECIAL = re.compile(r'([\\`*_{}\[\]#|~])')
_PLAIN_CODE = re.compile(r'[\w.:/=+,()@ -]+', re.ASCII)


def spans(words: Words) -> Iterable[str]:
    """The pieces of words, each a plain `str`, a `Name` or a `Verdict`."""
    return [words] if isinstance(words, str) else words


def joined(items: Iterable[Words], separator: str = ', ') -> list[str]:
    """All items as one, with the separator between them."""
    out: list[str] = []
    for i, item in enumerate(items):
        out += [separator] * (i > 0) + list(spans(item))
    return out


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = clean_all(text).strip().replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    return _SPECIAL.sub(r'\\\1', text)


def clean_all(text: str) -> str:
    """Text of any length on one line, without control and direction-changing characters."""
    text = re.sub(r'\s+', ' ', text)
    return ''.join(clean(text[i : i + 200]) for i in range(0, len(text), 200))


def _written(words: Words) -> str:
    out = ''
    for span in spans(words):
        if isinstance(span, Verdict):
            out += f'**{span}**'
        elif isinstance(span, Name) and _PLAIN_CODE.fullmatch(span):
            out += f'`{span}`'
        else:
            lead, tail = span[: len(span) - len(span.lstrip())], span[len(span.rstrip()) :]
            out += (' ' if lead else '') + escape(span) + (' ' if tail and span.strip() else '')
    return out


def markdown(document: Document, folder: str) -> str:
    """The document as Markdown; pictures are files in `folder`, relative to it."""
    parts = [f'# {escape(document.title)}', escape(document.facts)]
    for section in document.sections:
        parts.append(f'## {section.title}')
        parts += [_block(block, folder) for block in section.blocks]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _block(block: Block, folder: str) -> str:
    match block:
        case Text(words, 'headline'):
            return f'> {_written(words)}'
        case Text(words, 'missing'):
            return f'*{_written(words)}*'
        case Text(words, _):
            return _written(words)
        case Heading(words):
            return f'### {escape(words)}'
        case Bullets(items):
            return '\n'.join(f'- {_written(item)}' for item in items)
        case Cards(items):
            return _table(('', '', ''), [(what, number, note) for what, number, note in items])
        case Table(head, rows, _):
            return _table(head, rows)
        case Picture(name=name, title=title, how=how):
            path = f'{folder}/{name}'
            return (
                f'### {escape(title)}\n\n![{escape(title)}]({path}.svg)\n\n'
                f'{escape(how)} Numbers: [{path}.csv]({path}.csv).'
            )


def _table(head: Sequence[str], rows: Sequence[Sequence[Words]]) -> str:
    lines = ['| ' + ' | '.join(map(escape, head)) + ' |', '|' + ' --- |' * len(head)]
    lines += ['| ' + ' | '.join(map(_written, row)) + ' |' for row in rows]
    return '\n'.join(lines)
