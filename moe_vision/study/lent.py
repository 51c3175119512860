"""Reads the rows of a study, with those that neighbouring studies lend it.

A study names neighbours in `reads`. Where one of their arms has the same config as an arm here, to
the last key, and the same seed offset, their rows serve here, too: the cell is not trained twice.
Such a row keeps the name of its study and the hash that it was registered under, and has `lent_by`,
the name of its arm there. So comparisons that rest on it are exploratory here. A row of other
images than this study's own rows is not lent.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_vision.study import registration, rows
from moe_vision.study.analysis.pairs import listed
from moe_vision.study.rows import Rows


def read(workdir: str, record: Mapping[str, Any], digest: str) -> tuple[Rows, list[str]]:
    """What `rows.read` returns, with lent rows where the study has none of its own."""
    near, other_images = _offered(workdir, record)
    found, notes = rows.read(workdir, record, digest, near)
    owners: dict[tuple[str, str], list[int]] = {}
    for arm, seeds in found.items():
        for seed, row in seeds.items():
            if 'lent_by' in row:
                owner = f"study '{row['study']}' (arm {row['lent_by']}, the same config)"
                owners.setdefault((arm, owner), []).append(seed)
    lines = [f'{arm}: rows of {owner} for {listed(s)}.' for (arm, owner), s in owners.items()]
    return found, [*notes, *lines, *other_images, *absent(workdir, record)]


def usable(workdir: str, record: Mapping[str, Any], arm: str, seed: int) -> dict[str, Any] | None:
    """The row of a cell, its own or a lent one, if it has one."""
    row = rows.usable(workdir, record, arm, seed)
    return row or neighbours(workdir, record).get(arm, {}).get(seed)


def _folder(workdir: str, name: str) -> str:
    return os.path.normpath(Path(workdir).absolute().parent / name)


def absent(workdir: str, record: Mapping[str, Any]) -> list[str]:
    """A line for each neighbour that is not there."""
    return [
        f"reads: '{name}' holds no study yet ({_folder(workdir, name)}), so it lends nothing."
        for name in record.get('reads', ())
        if not registration.exists(_folder(workdir, name))
    ]


def neighbours(workdir: str, record: Mapping[str, Any]) -> Rows:
    """Rows that the studies in `record['reads']` lend; one that is not there yet lends nothing.

    Raises:
      UserError: a neighbour's registration cannot be read.
    """
    return _offered(workdir, record)[0]


def _offered(workdir: str, record: Mapping[str, Any]) -> tuple[Rows, list[str]]:
    """`neighbours`, and a line for each arm whose rows are of other images."""
    out: Rows = {arm: {} for arm in record['arms']}
    images = rows.images(workdir, record) if record.get('reads') else ''
    lines = []
    for name in record.get('reads', ()):
        folder = _folder(workdir, name)
        if not registration.exists(folder):
            continue
        theirs, digest = registration.read(folder)
        found, _ = rows.read(folder, theirs, digest)
        for arm, ours in record['arms'].items():
            for other, of_other in theirs['arms'].items():
                if not registration.same_arm(ours, of_other):
                    continue
                wanted = {s: row for s, row in found[other].items() if s in record['seeds']}
                same = {'', images}  # rows of older versions do not tell
                odd = [s for s, r in wanted.items() if images and r.get('data', '') not in same]
                if odd:
                    lines.append(f"{arm}: rows of '{name}' are of other images ({listed(odd)}).")
                for seed in wanted.keys() - set(odd):
                    out[arm].setdefault(seed, wanted[seed] | {'arm': arm, 'lent_by': other})
    return out, lines
