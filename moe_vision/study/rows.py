"""One cell's result as a row: made from its run's folder, written whole, read with suspicion.

A row holds no clock, no host and no path, so that a study that was killed and continued has the
bytes of one that was not. What depends on the clock is written beside it, under W/timings. Rows and
timings are written as a file per cell; `pack` merges them into one file of each, and every reader
here reads both.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moe_vision.common.errors import UserError, nearest
from moe_vision.common.files import read_json, write_json
from moe_vision.study import fields, packed, registration
from moe_vision.study.analysis.pairs import listed, short_commit
from moe_vision.study.packed import Cell

_OF_LAYER = ('effective_experts', 'dead_experts', 'drop_rate', 'orphan_rate', 'gate_entropy',
             'temperature', 'max_over_mean')
_FACTS = ('params_total', 'params_active', 'rho_place', 'rho_active', 'rho_executed', 'flops',
          'flops_executed')

Rows = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> row


def exists(workdir: str, arm: str, seed: int) -> bool:
    """Whether there is a row of the cell, usable or not."""
    return (packed.cell_path(workdir, 'rows', (arm, seed)).exists()
            or (arm, seed) in packed.read(workdir, 'rows').by_cell)


def collect(folder: str, study: str, arm: str, seed: int, digest: str,
            error: str | None = None) -> dict[str, Any]:
    """The row of a run that ended, from the files of its folder alone.

    Args:
      folder: of the run.
      digest: the pre-registration's hash.
      error: what made the loss not finite, or None.

    Raises:
      UserError: a file of the run cannot be read.
    """
    try:
        return _collect(Path(folder), study, arm, seed, digest, error)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"a file of the run in '{folder}' is damaged ({type(e).__name__}: {e}); "
                        'run again: that writes it anew.') from e


def _collect(run: Path, study: str, arm: str, seed: int, digest: str,
             error: str | None) -> dict[str, Any]:
    from moe_vision.run_folder import metrics

    about = read_json(run / 'config.json')
    row = {
        'study': study, 'arm': arm, 'seed': seed, 'run_seed': about['config']['seed'],
        'preregistration': digest,
        'status': 'diverged' if error else 'done', 'error': (error or '').split(';')[0],
        'config': registration.resolved(about['config']), 'versions': about['versions'],
        'git_commit': about['git_commit'], 'device': about['device'],
        'num_classes': about['dataset']['num_classes'],
        'images': about['dataset']['split_sizes']['test'],
        'result': {k: about['preflight'][k] for k in _FACTS}, 'correct': '', 'layers': {}}
    if not error:
        result, test = (read_json(run / f'{name}.json') for name in ('result', 'evaluation'))
        row['result'] = {k: v for k, v in result.items() if k != 'images_per_second'}
        row['correct'] = test.get('correct', '')
        row['layers'] = {name: {k: v for k, v in layer.items() if k != 'expert_by_class'}
                         for name, layer in test['layers'].items()}
    row['curve'] = [
        {k: r[k] for k in ('step', 'epoch', 'accuracy', 'loss')}
        | {'layers': {n: {k: x[k] for k in _OF_LAYER} for n, x in r['layers'].items()}}
        for r in metrics.read(str(run)) if r['split'] == 'validation']
    probed = run / 'mechanism.json'
    row['mechanism'] = read_json(probed) if probed.exists() and not error else None
    return row


def images_per_second(folder: str) -> float | None:
    """Of a run that ended: while training, compiling and evaluations left out."""
    return read_json(Path(folder) / 'result.json')['images_per_second']


def write(workdir: str, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
    """Writes the timing, then the row: where a row is, the cell is done."""
    cell = row['arm'], row['seed']
    for kind, value in (('timings', timing), ('rows', row)):
        file = packed.cell_path(workdir, kind, cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, dict(value))


def set_aside(workdir: str, arm: str, seed: int) -> str | None:
    """Makes room for a new row of the cell; returns where the old one is kept, None without one.

    A row's file is renamed. A line of rows.jsonl stays: the new row's file counts before it, and
    `pack` moves the line.
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


def read(workdir: str, record: Mapping[str, Any], digest: str) -> tuple[Rows, list[str]]:
    """The rows that can be used, by arm and seed in the record's order; and what is to be told.

    A row of another pre-registration is kept and told. A row whose accuracy is not a number counts
    as diverged. One that is not of this study or cannot be read is told and left out, and so is a
    line of rows.jsonl whose cell has another row already. Nothing is changed on disk.
    """
    found: Rows = {arm: {} for arm in record['arms']}
    notes: list[tuple[tuple[str, str], str]] = []  # with what they are sorted by: arm, file name
    root = Path(workdir) / 'rows'
    for file in sorted(p for p in root.glob('*/*') if not p.name.startswith('.')):
        if '.set_aside_' in file.name:
            continue
        try:
            row = _read(file, record)
        except ValueError as e:
            notes.append(((file.parent.name, file.name),
                          f'{file.relative_to(workdir)}: {e}; it is left out.'))
            continue
        found[row['arm']][row['seed']] = row
    damaged = list(_add_lines(found, workdir, record))
    for arm, seed, row in ((a, s, row) for a, seeds in found.items() for s, row in seeds.items()):
        at = arm, f'seed_{seed}.json'
        if row['preregistration'] != digest:
            notes.append((at, f'{arm} seed {seed}: of another pre-registration '
                          f'({str(row["preregistration"])[:16]}, here {digest[:16]}); what it '
                          'takes part in is exploratory.'))
        if row['status'] == 'diverged':
            why = row.get('error') or 'no reason told'
            notes.append((at, f'{arm} seed {seed}: diverged ({why}); it counts as chance.'))
    notes.sort(key=lambda note: note[0])  # as one reads the files, packed or not
    rows = {arm: {s: found[arm][s] for s in record['seeds'] if s in found[arm]} for arm in found}
    return rows, [*(text for _, text in notes), *damaged, *_commits(rows), *_missing(rows, record)]


def usable(workdir: str, record: Mapping[str, Any], arm: str, seed: int) -> dict[str, Any] | None:
    """The row of a cell where there is one that `read` would keep."""
    try:
        return _read(packed.cell_path(workdir, 'rows', (arm, seed)), record)
    except ValueError:
        pass
    for line in packed.read(workdir, 'rows').by_cell.get((arm, seed), ()):
        try:
            return _of_line(line, record)
        except ValueError:
            continue
    return None


def timings(workdir: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Every timing that can be read: arm -> seed -> what `write` was given."""
    found: dict[Cell, dict[str, Any]] = {}
    for file in (Path(workdir) / 'timings').glob('*/seed_*.json'):
        try:
            value, seed = packed.load(file.read_bytes()), int(file.stem.removeprefix('seed_'))
        except (OSError, ValueError):
            continue
        if isinstance(value, dict):
            found[file.parent.name, seed] = value
    for line in packed.read(workdir, 'timings').lines:
        if line.cell and not line.error:
            found.setdefault(line.cell, {k: v for k, v in line.value.items()
                                         if k not in ('arm', 'seed')})
    out: dict[str, dict[int, dict[str, Any]]] = {}
    for arm, seed in sorted(found, key=lambda cell: (cell[0], f'seed_{cell[1]}.json')):
        out.setdefault(arm, {})[seed] = found[arm, seed]
    return out


def pack(workdir: str, record: Mapping[str, Any]) -> list[str]:
    """Merges the files of all cells into rows.jsonl and timings.jsonl; see `packed.pack`.

    Lines stand in the order of the registration: by arm, then by seed. Nobody else may pack the
    same folder meanwhile.

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
        return isinstance(value, dict) and (
            value.get('arm', cell[0]), value.get('seed', cell[1])) == cell

    said = []
    for kind, check in (('timings', usable_timing), ('rows', usable_row)):
        count, beside = packed.pack(workdir, kind, cells, check)
        said.append(f'{packed.path(workdir, kind)} holds {count} of {len(cells)} {kind}')
        if beside:
            said.append(f'lines that cannot be used or repeat a cell are kept in {beside}')
    return said


def write_latency(workdir: str, found: Mapping[str, Any]) -> Path:
    """Writes what `latency.measure` found; returns where."""
    file = Path(workdir) / 'timings' / 'latency.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, dict(found))
    return file


def latency(workdir: str) -> dict[str, Any] | None:
    """What `write_latency` wrote, or None."""
    try:
        return json.loads((Path(workdir) / 'timings' / 'latency.json').read_text())
    except (OSError, ValueError):
        return None


def _read(file: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The row in a file, checked. Raises ValueError with what is wrong."""
    number = re.fullmatch(r'seed_(0|[1-9][0-9]*)\.json', file.name)
    if number is None and file.parent.name in record['arms']:
        raise ValueError('not the name of a row, seed_NUMBER.json')
    cell = _known(file.parent.name, int(number[1]) if number else None, record)
    try:
        data = file.read_bytes()
    except OSError as e:
        raise ValueError(f'cannot be read ({e.strerror})') from e
    return _checked(packed.load(data), cell, record)


def _of_line(line: packed.Line, record: Mapping[str, Any]) -> dict[str, Any]:
    """The row in a line of rows.jsonl, checked. Raises ValueError with what is wrong."""
    if line.error:
        raise ValueError(line.error)
    if not line.cell:
        told = fields.wrong(line.value) or 'it names no cell'
        raise ValueError(f'half-written or damaged, {told}')
    return _checked(line.value, _known(*line.cell, record), record)


def _add_lines(found: Rows, workdir: str, record: Mapping[str, Any]) -> Iterator[str]:
    """Adds the rows of rows.jsonl to those of files; yields a note for each line left out.

    A line that cannot be used, or has the same row, is passed over where the cell's file counts.
    """
    own = {(arm, seed) for arm, seeds in found.items() for seed in seeds}
    first: dict[Cell, int] = {}
    for line in packed.read(workdir, 'rows').lines:
        at = f'rows.jsonl line {line.number}'
        try:
            row = _of_line(line, record)
        except ValueError as e:
            if line.cell not in own:
                yield f'{at}: {e}; it is left out.'
            continue
        arm, seed = cell = row['arm'], row['seed']
        before = first.setdefault(cell, line.number)
        if before != line.number:
            yield f'{at}: {arm} seed {seed} stands on line {before}, too; it is left out.'
        elif cell not in own:
            found[arm][seed] = row
        elif json.dumps(row) != json.dumps(found[arm][seed]):  # by text: NaN is no other value
            yield f'{at}: rows/{arm}/seed_{seed}.json has another row and counts; it is left out.'


def _known(arm: str, seed: Any, record: Mapping[str, Any]) -> Cell:
    """The cell. Raises ValueError where the study has no such arm or seed."""
    if arm not in record['arms']:
        raise ValueError(f"unknown arm {arm!r}{nearest(arm, record['arms']) or '.'}"
                         .removesuffix('.'))
    if seed not in record['seeds']:
        raise ValueError(f'seed {seed} is not one of the study ({listed(record["seeds"])})')
    return arm, seed


def _checked(row: Any, cell: Cell, record: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON value as the cell's row. Raises ValueError with what is wrong."""
    arm, seed = cell
    if told := fields.wrong(row):
        raise ValueError(f'half-written or damaged, {told}')
    if (row['arm'], row['seed']) != cell:
        raise ValueError(f"it says arm {row['arm']!r} seed {row['seed']!r}, unlike its name")
    if row['status'] not in ('done', 'diverged'):
        raise ValueError(f"its status is {row['status']!r}, not done or diverged")
    wanted = seed + record['arms'][arm]['seed_offset']
    if row['run_seed'] != wanted:
        raise ValueError(f"its run's seed is {row['run_seed']!r}, not {wanted}")
    try:
        other = registration.same_config(record['arms'][arm]['config'], row['config'])
    except (TypeError, AttributeError) as e:
        raise ValueError('half-written or damaged, its config is no config') from e
    if other:
        raise ValueError(f"its config is not the arm's: {other}")
    if row['status'] == 'done' and not _share(row['result'].get('test_accuracy')):
        return row | {'status': 'diverged', 'error': 'test_accuracy is '
                      f'{row["result"].get("test_accuracy")!r}, not a share'}
    return row


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _commits(rows: Rows) -> Iterator[str]:
    """A line for every commit of the code but the one most rows come from."""
    of: dict[str, list[str]] = {}
    for arm, seeds in rows.items():
        for seed, row in seeds.items():
            of.setdefault(str(row.get('git_commit')), []).append(f'{arm} seed {seed}')
    usual, *others = sorted(of, key=lambda c: (-len(of[c]), c)) or ['']
    for commit in others:
        yield (f'of another commit of the code ({short_commit(commit)}, most rows have '
               f'{short_commit(usual)}): {", ".join(of[commit])}.')
    changed = sum(len(cells) for commit, cells in of.items() if commit.endswith('+changes'))
    if changed:
        yield f'{changed} of the rows were made by code with changes that are in no commit.'


def _missing(rows: Rows, record: Mapping[str, Any]) -> Iterator[str]:
    for arm, seeds in rows.items():
        lacking = [s for s in record['seeds'] if s not in seeds]
        if lacking:
            yield f'{arm}: no row for {listed(lacking)}.'
