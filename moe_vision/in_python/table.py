"""A table of rows with names, which shows itself in a terminal and in a notebook."""

import html
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

_ROWS, _COLUMNS = 12, 9  # shown


class Table(list[dict[str, Any]]):
    """A list of rows, each a dictionary. `pandas.DataFrame(table)` takes it as it is.

    >>> table.columns
    >>> table['loss']  # a column; None where a row has no such value
    >>> table.where(split='validation')['accuracy']
    >>> table[-1]['step']
    """

    @property
    def columns(self) -> list[str]:
        """The names of all values, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self for name in row))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.columns:
                from moe_vision.common.errors import UserError, nearest

                raise UserError(
                    f"no column '{key}'.{nearest(key, self.columns)} `columns` lists all."
                )
            return [row.get(key) for row in self]
        found = super().__getitem__(key)
        return Table(found) if isinstance(key, slice) else found

    def where(self, **values: Any) -> 'Table':
        """The rows that have these values: `where(split='train')`."""
        return Table(r for r in self if all(r.get(n) == v for n, v in values.items()))

    def __repr__(self) -> str:
        head, rows = self._shown()
        lines = [head, *rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        texts = ['  '.join(x.rjust(n) for x, n in zip(line, widths, strict=True)) for line in lines]
        return '\n'.join([*texts, self._size()])

    def _repr_html_(self) -> str:
        head, rows = self._shown()

        def line(cells: Iterable[str], kind: str) -> str:
            return ''.join(f'<{kind}>{html.escape(c)}</{kind}>' for c in cells)

        body = ''.join(f'<tr>{line(r, "td")}</tr>' for r in rows)
        return (
            f'<table><thead><tr>{line(head, "th")}</tr></thead><tbody>{body}</tbody></table>'
            f'<p>{html.escape(self._size())}</p>'
        )

    def _size(self) -> str:
        return f'[{len(self)} rows, {len(self.columns)} columns]'

    def _shown(self) -> tuple[list[str], list[list[str]]]:
        """The first columns that hold numbers or words, and the first and last rows."""
        names = [n for n in self.columns if not any(isinstance(r.get(n), list) for r in self)]
        names = names[:_COLUMNS]
        rows: list[dict[str, Any] | None] = list(self)
        if len(self) > _ROWS:
            rows = [*rows[: _ROWS // 2], None, *rows[-_ROWS // 2 :]]
        return names, [['…' if r is None else _cell(r.get(n)) for n in names] for r in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ''
    exact = isinstance(value, numbers.Integral) or not isinstance(value, numbers.Real)
    return str(value) if exact else f'{float(value):.4g}'


def flat(row: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """A row without nesting: {'layers': {'block_1': {'drop_rate': 0.1}}} has
    'layers.block_1.drop_rate'. What validations record of single images is left out."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            out |= {} if name == 'probe' and not prefix else flat(value, f'{prefix}{name}.')
        else:
            out[f'{prefix}{name}'] = value
    return out
