"""Parses a report page for the tests that look at it."""

import html.parser

VOID = {'meta', 'br', 'hr', 'img', 'col'}


class Parsed(html.parser.HTMLParser):
    """The page's elements and text; fails on a closing tag that closes nothing."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[tuple[str, str]] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append((self.open[-1] if self.open else '', data))

    def text(self) -> str:
        return ' '.join(data for tag, data in self.words if tag != 'style')

    def named(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]
