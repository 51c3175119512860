"""Pairs the rows of two arms by seed: their accuracies, their common seeds, how their runs differ.

Accuracies are exact fractions of counted images, so that equal ones compare as equal. A row is as
`rows.read` returns it; only `num_classes` is sure to be there.

Axis letters: S seeds, I test images.
"""

import base64
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from moe_vision.common.json_values import number

Row = dict[str, Any]
Cells = Mapping[str, Mapping[int, Row]]  # arm -> seed -> row

EXPLORATORY = 'exploratory: '  # starts the flag of a comparison that confirms nothing
VALIDATION = 'validation_accuracy'
_SELECTED = 'test_accuracy_selected'
_NEAR = 0.01  # images by which accuracy * images may miss a whole number (float32 shares do)
_DECIMALS = 10**9  # kept of an accuracy that is not a whole number of images


def result(row: Row, key: str) -> float:
    """A number of the run's result; NaN if it has none."""
    return number((row.get('result') or {}).get(key))


def scored(row: Row, metric: str) -> Row:
    """The row as the analysis reads it if the study's metric is `metric`.

    With `validation_accuracy`, the accuracy after the last step is that of the last point of the
    curve, and everything that was measured on test images is left out. A run without a point
    counts as diverged.
    """
    if metric != VALIDATION:
        return row
    result = {
        key: value
        for key, value in (row.get('result') or {}).items()
        if not key.startswith('test_') and key != 'accuracy_at_capacity'
    }
    curve = row.get('curve') or [{}]
    result['test_accuracy'] = curve[-1].get('accuracy')
    return row | {'result': result, 'correct': '', 'images': row.get('validation_images')}


def diverged(row: Row) -> bool:
    """Whether the run counts as chance: its loss is not finite, or its accuracy no share."""
    return row.get('status') == 'diverged' or not 0 <= result(row, 'test_accuracy') <= 1


def accuracy(row: Row) -> Fraction:
    """Final accuracy in pp, as an exact fraction; 100 / classes for a diverged run."""
    if diverged(row):
        return Fraction(100, int(row['num_classes']))
    return _pp(row, 'test_accuracy')


def selected(row: Row) -> Fraction | None:
    """Test accuracy at the checkpoint chosen on validation, pp; None if none was chosen."""
    if diverged(row):
        return accuracy(row)
    return _pp(row, _SELECTED) if 0 <= result(row, _SELECTED) <= 1 else None


def _pp(row: Row, key: str) -> Fraction:
    share, images = result(row, key), _images(row)
    if images and abs(share * images - round(share * images)) < _NEAR:
        return Fraction(100 * round(share * images), images)
    return Fraction(100 * round(share * _DECIMALS), _DECIMALS)


def _images(row: Row) -> int:
    """Number of images that were scored; 0 if the row does not say."""
    images = number(row.get('images'))
    return 0 if math.isnan(images) else int(images)


def bits(row: Row) -> np.ndarray | None:
    """Which test images were classified correctly, bool [I].

    None if the row has no such list, or if the list does not give the row's accuracy.
    """
    images = _images(row)
    try:
        packed = np.frombuffer(base64.b64decode(row.get('correct') or '', validate=True), np.uint8)
    except (ValueError, TypeError):
        return None
    if diverged(row) or not images or len(packed) != -(-images // 8):
        return None
    right = np.unpackbits(packed, count=images).astype(bool)
    return right if Fraction(100 * int(right.sum()), images) == accuracy(row) else None


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The seeds for which both arms have a row, in the study's order."""

    ONE = 'pair of seeds'
    WHOLE = 'both runs'
    LOST = 'both arms diverged'
    EQUAL = 'equal accuracies'

    arm: str
    baseline: str
    seeds: tuple[int, ...]
    rows: tuple[tuple[Row, Row], ...]

    def accuracies(self, side: int) -> list[Fraction]:
        """pp per seed of the arm (0) or the baseline (1)."""
        return [accuracy(rows[side]) for rows in self.rows]

    def gaps(self) -> list[Fraction]:
        """accuracy(arm) - accuracy(baseline) per seed, pp."""
        return [accuracy(a) - accuracy(b) for a, b in self.rows]

    def gap_of(self) -> dict[int, Fraction]:
        """seed -> its gap, pp."""
        return dict(zip(self.seeds, self.gaps(), strict=True))

    def selected(self) -> dict[int, Fraction]:
        """seed -> gap at the checkpoints chosen on validation, pp; {} if no run chose one."""
        if all(math.isnan(result(row, _SELECTED)) for rows in self.rows for row in rows):
            return {}
        both = {
            seed: (selected(a), selected(b))
            for seed, (a, b) in zip(self.seeds, self.rows, strict=True)
        }
        return {s: a - b for s, (a, b) in both.items() if a is not None and b is not None}

    def ended(self) -> dict[int, Fraction]:
        """seed -> gap of the pairs in which neither run diverged, pp."""
        return {
            seed: accuracy(a) - accuracy(b)
            for seed, (a, b) in zip(self.seeds, self.rows, strict=True)
            if not diverged(a) and not diverged(b)
        }

    def lost(self) -> list[int]:
        """Seeds in which both runs diverged, so that their gap of 0 says nothing."""
        return [
            seed
            for seed, (a, b) in zip(self.seeds, self.rows, strict=True)
            if diverged(a) and diverged(b)
        ]

    @property
    def void(self) -> bool:
        """Whether every run of both arms diverged, so that equal accuracies say nothing."""
        return len(self.lost()) == len(self.rows)

    def correct(self) -> tuple[np.ndarray, np.ndarray] | None:
        """`bits` [S, I] of the arm and of the baseline; None unless every run has them."""
        sides = [[bits(rows[side]) for rows in self.rows] for side in (0, 1)]
        known = [b for side in sides for b in side if b is not None]
        if not known or len(known) < 2 * len(self.rows) or len({len(b) for b in known}) > 1:
            return None
        return np.array(known[: len(self.rows)]), np.array(known[len(self.rows) :])


def listed(seeds: Iterable[int]) -> str:
    """'seed 3', 'seeds 1, 2'."""
    numbers = [str(seed) for seed in seeds]
    return f'seed{"s" * (len(numbers) > 1)} ' + ', '.join(numbers)


def pair(arm: str, baseline: str, cells: Cells) -> tuple[Pairs, str]:
    """Pairs two arms by seed. Also returns a line about seeds that are left out, or ''."""
    a, b = cells.get(arm, {}), cells.get(baseline, {})
    seeds = tuple(seed for seed in a if seed in b)
    lacking = [
        f'{name} has no row for {listed(missing)}'
        for name, missing in (
            (arm, [s for s in b if s not in a]),
            (baseline, [s for s in a if s not in b]),
        )
        if missing
    ]
    if not seeds:
        lacking = [
            f'no pair of seeds: {name} has no rows'
            for name in (arm, baseline)
            if not cells.get(name)
        ] or ['no pair of seeds']
    return (
        Pairs(arm, baseline, seeds, tuple((a[seed], b[seed]) for seed in seeds)),
        '; '.join(lacking),
    )


def flags(pairs: Pairs, hash: str) -> list[str]:
    """What is unusual about the pairs, one line each.

    These are rows of another pre-registration, and pairs whose two runs differ in device, version,
    commit or number of test images.
    """
    foreign = {
        name: [
            seed
            for seed, rows in zip(pairs.seeds, pairs.rows, strict=True)
            if rows[side].get('preregistration') != hash
        ]
        for side, name in enumerate((pairs.arm, pairs.baseline))
    }
    named = '; '.join(f'{name} {listed(seeds)}' for name, seeds in foreign.items() if seeds)
    out = [f'{EXPLORATORY}rows of another pre-registration ({named})'] if named else []
    out += _differing(pairs, 'device', lambda row: row.get('device'))
    packages = {p for rows in pairs.rows for row in rows for p in row.get('versions') or {}}
    for package in sorted(packages):
        out += _differing(pairs, f'version of {package}', functools.partial(_version, package))
    out += _differing(pairs, 'commit', lambda row: short_commit(row.get('git_commit')))
    out += _differing(pairs, 'number of test images', lambda row: row.get('images'))
    known = [row.get('data') for rows in pairs.rows for row in rows]
    if all(known):  # rows of older versions do not tell
        out += _differing(pairs, 'digest of the images', lambda row: str(row['data'])[:10])
    return out


def _version(package: str, row: Row) -> Any:
    return (row.get('versions') or {}).get(package)


def short_commit(commit: str | None) -> str | None:
    """The first ten digits of a commit, and its mark if it has one: '0123456789+changes'."""
    name, mark, _ = (commit or '').partition('+changes')
    return commit and name[:10] + mark


def _differing(pairs: Pairs, what: str, read: Callable[[Row], Any]) -> list[str]:
    """'device differs: cpu and NVIDIA H200 (seeds 0, 1)': a line for each pair of values."""
    seeds_of: dict[tuple[Any, Any], list[int]] = {}
    for seed, (a, b) in zip(pairs.seeds, pairs.rows, strict=True):
        if read(a) != read(b):
            seeds_of.setdefault((read(a), read(b)), []).append(seed)
    return [
        f'{what} differs: {_shown(a)} and {_shown(b)} ({listed(seeds)})'
        for (a, b), seeds in seeds_of.items()
    ]


def _shown(value: Any) -> str:
    return 'unknown' if value is None else str(value)
