"""Keeps the rows of a study, and checks every field of a row when reading it.

A row holds no time, host or path, so a study that was killed and resumed has the same bytes as one
that was not. What depends on the clock is written beside it, under W/timings. Rows and timings are
written as one file per cell; `pack` merges them into rows.jsonl and timings.jsonl, and every reader
here reads both forms.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moe_vision.common.errors import nearest
from moe_vision.common.files import write_json
from moe_vision.study import fields, packed, registration
from moe_vision.study.analysis.pairs import listed, short_commit
from moe_vision.study.packed import Cell

Rows = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> row


def exists(workdir: str, arm: str, seed: int) -> bool:
    """Whether the cell has a row, usable or not."""
    return (
        packed.cell_path(workdir, 'rows', (arm, seed)).exists()
        or (arm, seed) in packed.read(workdir, 'rows').by_cell
    )


def write(workdir: str, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
    """Writes the timing, then the row: a cell counts as done once its row exists."""
    cell = row['arm'], row['seed']
    for kind, value in (('timings', timing), ('rows', row)):
        file = packed.cell_path(workdir, kind, cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, dict(value))


def set_aside(workdir: str, arm: str, seed: int) -> str | None:
    """Makes room for a new row of the cell. Returns where the old one is kept, or None.

    A row's file is renamed. A line of rows.jsonl stays: the file of the new row takes precedence,
    and `pack` moves the line.
    """
    file = packed.cell_path(workdir, 'rows', (arm, seed))
    number = 1
    while (to := file.with_name(f'{file.name}.set_aside_{number}')).exists():
        number += 1
    try:
        return str(file.rename(to))
    except FileNotFoundError:
        lines = packed.read(workdir, 'rows').by_cell.get((arm, seed))
        return f'{packed.path(workdir, "rows")}, line {lines[0].number}' if lines else None


def read(
    workdir: str, record: Mapping[str, Any], digest: str, lent: Rows | None = None
) -> tuple[Rows, list[str]]:
    """The usable rows, by arm and seed in the record's order, and a line about each problem.

    A row of another pre-registration is kept, with a line; one without a number as its accuracy
    counts as diverged. A row of another study, one that cannot be read, and a line of rows.jsonl
    whose cell already has another row are left out, with a line. Cells without a row take `lent`.
    """
    by_arm: Rows = {arm: {} for arm in record['arms']}
    notes: list[tuple[tuple[str, str], str]] = []  # (arm, file name) to sort by, line
    root = Path(workdir) / 'rows'
    for file in sorted(p for p in root.glob('*/*') if not p.name.startswith('.')):
        if '.set_aside_' in file.name:
            continue
        try:
            row = _read(file, record)
        except ValueError as e:
            cell = file.parent.name, file.name
            notes.append((cell, f'{file.relative_to(workdir)}: {e}; it is left out.'))
            continue
        by_arm[row['arm']][row['seed']] = row
    damaged = list(_add_lines(by_arm, workdir, record))
    for arm, seed, row in ((a, s, row) for a, seeds in by_arm.items() for s, row in seeds.items()):
        key = arm, f'seed_{seed}.json'
        if row['preregistration'] != digest:
            notes.append(
                (
                    key,
                    f'{arm} seed {seed}: registered under another hash '
                    f'({str(row["preregistration"])[:16]}, not {digest[:16]}); its '
                    'comparisons are exploratory.',
                )
            )
        if row['status'] == 'diverged':
            why = row.get('error') or 'no reason given'
            notes.append((key, f'{arm} seed {seed}: diverged ({why}); it counts as chance.'))
    for arm, seeds in (lent or {}).items():
        by_arm[arm] = seeds | by_arm[arm]
    notes.sort(key=lambda note: note[0])  # the order of the files, packed or not
    rows = {
        arm: {s: of_arm[s] for s in record['seeds'] if s in of_arm}
        for arm, of_arm in by_arm.items()
    }
    return rows, [*(line for _, line in notes), *damaged, *_commits(rows), *_missing(rows, record)]


def usable(workdir: str, record: Mapping[str, Any], arm: str, seed: int) -> dict[str, Any] | None:
    """The row of a cell, if it has one that `read` would keep."""
    try:
        return _read(packed.cell_path(workdir, 'rows', (arm, seed)), record)
    except ValueError:
        pass
    for line in packed.read(workdir, 'rows').by_cell.get((arm, seed), ()):
        try:
            return _from_line(line, record)
        except ValueError:
            continue
    return None


def images(workdir: str, record: Mapping[str, Any]) -> str:
    """The digest of the images that a study's own rows are of; '' if no row tells."""
    cells = itertools.product(record['arms'], record['seeds'])
    found = (usable(workdir, record, *cell) for cell in cells)
    return next((row['data'] for row in found if row and row.get('data')), '')


def pack(workdir: str, record: Mapping[str, Any]) -> list[str]:
    """Merges the files of all cells into rows.jsonl and timings.jsonl; see `packed.pack`.

    Lines are in the order of the registration: by arm, then by seed. No other process may pack the
    same folder at the same time.

    Returns:
      lines that say what was done.
    """
    cells = list(itertools.product(record['arms'], record['seeds']))

    def usable_row(value: Any, cell: Cell) -> bool:
        try:
            return bool(_checked(value, cell, record))
        except ValueError:
            return False

    def usable_timing(value: Any, cell: Cell) -> bool:
        return (
            not fields.wrong_timing(value)
            and (value.get('arm', cell[0]), value.get('seed', cell[1])) == cell
        )

    report = []
    for kind, check in (('timings', usable_timing), ('rows', usable_row)):
        count, aside = packed.pack(workdir, kind, cells, check)
        report.append(f'{packed.path(workdir, kind)} holds {count} of {len(cells)} {kind}')
        if aside:
            report.append(f'lines that cannot be used or repeat a cell are kept in {aside}')
    return report


def _read(file: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The row in a file, checked. Raises ValueError with what is wrong."""
    number = re.fullmatch(r'seed_(0|[1-9][0-9]*)\.json', file.name)
    if number is None and file.parent.name in record['arms']:
        raise ValueError('not the name of a row, seed_NUMBER.json')
    cell = _known(file.parent.name, int(number[1]) if number else None, record)
    try:
        value = packed.read_cell(file)
    except OSError as e:
        raise ValueError(f'cannot be read ({e.strerror})') from e
    return _checked(value, cell, record)


def _from_line(line: packed.Line, record: Mapping[str, Any]) -> dict[str, Any]:
    """The row in a line of rows.jsonl, checked. Raises ValueError with what is wrong."""
    if line.error:
        raise ValueError(line.error)
    if not line.cell:
        problem = fields.wrong(line.value) or 'it names no cell'
        raise ValueError(f'half-written or damaged, {problem}')
    return _checked(line.value, _known(*line.cell, record), record)


def _add_lines(by_arm: Rows, workdir: str, record: Mapping[str, Any]) -> Iterator[str]:
    """Adds the rows of rows.jsonl to those of files; yields a note for each line left out.

    If a cell has a file, its line is skipped without a note when unusable or the same row.
    """
    own = {(arm, seed) for arm, seeds in by_arm.items() for seed in seeds}
    first: dict[Cell, int] = {}
    for line in packed.read(workdir, 'rows').lines:
        name = f'rows.jsonl line {line.number}'
        try:
            row = _from_line(line, record)
        except ValueError as e:
            if line.cell not in own:
                yield f'{name}: {e}; it is left out.'
            continue
        arm, seed = cell = row['arm'], row['seed']
        before = first.setdefault(cell, line.number)
        if before != line.number:
            yield f'{name}: {arm} seed {seed} is already on line {before}; it is left out.'
        elif cell not in own:
            by_arm[arm][seed] = row
        elif json.dumps(row) != json.dumps(by_arm[arm][seed]):  # as text, where NaN equals NaN
            yield (
                f'{name}: rows/{arm}/seed_{seed}.json differs and takes precedence; it is left out.'
            )


def _known(arm: str, seed: Any, record: Mapping[str, Any]) -> Cell:
    """The cell. Raises ValueError if the study has no such arm or seed."""
    if arm not in record['arms']:
        raise ValueError(
            f'unknown arm {arm!r}{nearest(arm, record["arms"]) or "."}'.removesuffix('.')
        )
    if seed not in record['seeds']:
        raise ValueError(f'seed {seed} is not one of the study ({listed(record["seeds"])})')
    return arm, seed


def _checked(row: Any, cell: Cell, record: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON value as the cell's row. Raises ValueError with what is wrong."""
    arm, seed = cell
    if problem := fields.wrong(row):
        raise ValueError(f'half-written or damaged, {problem}')
    if (row['arm'], row['seed']) != cell:
        raise ValueError(f'it says arm {row["arm"]!r} seed {row["seed"]!r}, unlike its name')
    if row['status'] not in ('done', 'diverged'):
        raise ValueError(f'its status is {row["status"]!r}, not done or diverged')
    run_seed = seed + record['arms'][arm]['seed_offset']
    if row['run_seed'] != run_seed:
        raise ValueError(f"its run's seed is {row['run_seed']!r}, not {run_seed}")
    try:
        difference = registration.same_config(record['arms'][arm]['config'], row['config'])
    except (TypeError, AttributeError) as e:
        raise ValueError('half-written or damaged, its config is no config') from e
    if difference:
        raise ValueError(f"its config is not the arm's: {difference}")
    if row['status'] == 'done' and not _share(row['result'].get('test_accuracy')):
        return row | {
            'status': 'diverged',
            'error': f'test_accuracy is {row["result"].get("test_accuracy")!r}, not a share',
        }
    return row


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _commits(rows: Rows) -> Iterator[str]:
    """A line for each commit of the code, except the one that most rows come from."""
    cells_of: dict[str, list[str]] = {}
    for arm, seeds in rows.items():
        for seed, row in seeds.items():
            cells_of.setdefault(str(row.get('git_commit')), []).append(f'{arm} seed {seed}')
    usual, *others = sorted(cells_of, key=lambda c: (-len(cells_of[c]), c)) or ['']
    for commit in others:
        yield (
            f'made by another commit of the code ({short_commit(commit)}, most rows by '
            f'{short_commit(usual)}): {", ".join(cells_of[commit])}.'
        )
    if changed := sum(len(cells) for c, cells in cells_of.items() if c.endswith('+changes')):
        yield f'{changed} row{"s" * (changed != 1)} made by code with uncommitted changes.'


def _missing(rows: Rows, record: Mapping[str, Any]) -> Iterator[str]:
    for arm, seeds in rows.items():
        if lacking := [s for s in record['seeds'] if s not in seeds]:
            yield f'{arm}: no row for {listed(lacking)}.'
