"""Draws gaps of several studies in one picture: where do experts help, and where not?

`overview.json` in a folder of studies names them:

    {"series": ["against the dense network of equal FLOPs", "against the dense network"],
     "settings": [
       {"setting": "24 epochs", "study": "confirm", "fit": "dense",
        "gaps": ["k2_minus_dense_active", "k2_minus_dense"]},
       {"setting": "72 epochs", "study": "gate/length", "fit": "dense_72",
        "gaps": ["k2_72_minus_dense_active_72", null]}]}

A setting has one gap for each series, or null. `fit` is an arm that was scored on training images:
a second picture shows the gaps against what it learned by heart. Studies may have registered
different levels, so all intervals here are t-intervals of 95 %, each by itself.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline import json_data
from moe_vision.common import files
from moe_vision.common.errors import NotWritten, UserError, unknown
from moe_vision.common.json_values import as_dict, as_list, clean
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.findings import Gap
from moe_vision.study.report import fit, tables
from moe_vision.study.report.numbers import finite

FILE = 'overview.json'


def write(workdir: str, analyses: Callable[[str], Analysis]) -> list[str]:
    """Makes `overview/` in a folder of studies, from its `overview.json`.

    Args:
      analyses: the analysis of the study in a folder.

    Returns:
      The paths written; none if the folder has no such file.

    Raises:
      UserError: the file asks for what is not there.
      NotWritten: the pictures cannot be written.
    """
    path = Path(workdir, FILE)
    if not path.exists():
        return []
    from moe_vision.report import figure
    from moe_vision.study.report import overview_figure

    names, settings = _asked(path)
    found = {s['study']: analyses(str(path.parent / s['study'])) for s in settings}
    points = [
        overview_figure.Point(s['setting'], s['study'], series, gap, s.get('fit', ''), by_heart)
        for s in settings
        for series, gap, by_heart in _gaps(s, found[s['study']], path)
    ]
    if not points:
        raise UserError(f"'{path}' names no gap that has rows yet; run its studies first.")
    pictures = {'gaps': overview_figure.gaps(points, names)}
    if any(math.isfinite(p.fit) for p in points):
        pictures['fit'] = overview_figure.against_fit(points, names)
    contents = {f'{name}.svg': figure.alone(svg) for name, svg in pictures.items()}
    contents['gaps.csv'] = tables.csv_text(overview_figure.HEAD, [p.row(names) for p in points])
    folder = Path(workdir, 'overview')
    try:
        folder.mkdir(exist_ok=True)
        for name, text in contents.items():
            files.write(folder / name, text.encode('utf-8', 'replace'))
        if 'fit' not in pictures:
            (folder / 'fit.svg').unlink(missing_ok=True)  # of an earlier overview.json
    except OSError as e:
        raise NotWritten(
            f"the overview in '{folder}' cannot be written: {files.reason(e)}; make room, and "
            'start again.'
        ) from e
    return [str(folder / name) for name in sorted(contents)]


def _asked(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of the series, and the settings."""
    try:
        asked = as_dict(json_data.read(path))
    except (OSError, ValueError) as e:
        raise UserError(f"'{path}' cannot be read: {files.reason(e)}; write it anew.") from e
    names = [clean(str(name)) for name in as_list(asked.get('series'))]
    settings = [as_dict(s) for s in as_list(asked.get('settings'))]
    if not names or not settings:
        raise UserError(f"'{path}' needs `series`, a list of names, and `settings`, a list.")
    for s in settings:
        for key in s:
            if key not in ('setting', 'study', 'gaps', 'fit'):
                raise unknown(f"key in '{path}'", clean(key), ('setting', 'study', 'gaps', 'fit'))
        if not all(isinstance(s.get(key), str) for key in ('setting', 'study')):
            raise UserError(f"a setting in '{path}' lacks its name, `setting`, or its `study`.")
        s['setting'] = clean(s['setting'])
        if (given := len(as_list(s.get('gaps')))) != len(names):
            raise UserError(
                f"setting '{s['setting']}' in '{path}' has {given} of {len(names)} gaps, one for "
                'each series; write null where it has none.'
            )
    called = [s['setting'] for s in settings]
    if twice := [name for name in called if called.count(name) > 1]:
        raise UserError(f"'{path}' has two settings '{twice[0]}'; give each a name of its own.")
    return names, settings


def _gaps(
    setting: Mapping[str, Any], analysis: Analysis, path: Path
) -> Iterator[tuple[int, Gap, float]]:
    """Series, gap and what the arm `fit` learned by heart, of what has rows."""
    study, arm = setting['study'], setting.get('fit')
    learned: list[float] = []
    if arm is not None:
        if str(arm) not in analysis.arms:
            raise unknown(f"arm of '{clean(study)}' in '{path}'", clean(str(arm)), analysis.arms)
        learned = finite(fit.gap(analysis.arms[str(arm)]))
    by_heart = float(np.mean(learned)) if learned else math.nan
    for series, name in enumerate(setting['gaps']):
        if name is None:
            continue
        if str(name) not in analysis.gaps:
            raise unknown(f"gap of '{clean(study)}' in '{path}'", clean(str(name)), analysis.gaps)
        gap = analysis.gaps[str(name)]
        if math.isfinite(gap.estimate.mean):
            yield series, gap, by_heart
