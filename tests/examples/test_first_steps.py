"""The notebook for newcomers runs from beginning to end, in a folder of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / 'examples' / 'first_steps.ipynb'


def test_it_is_kept_without_outputs():
    """A notebook that was run differs from the one in the repository by more than its text."""
    cells = json.loads(NOTEBOOK.read_text())['cells']
    code = [c for c in cells if c['cell_type'] == 'code']
    assert all(c['outputs'] == [] and c['execution_count'] is None for c in code)


@pytest.mark.slow
def test_it_runs_as_it_stands(tmp_path):
    """In a new process, and programs compiled as well as they are for users."""
    quick = ('JAX_DISABLE_MOST_OPTIMIZATIONS', 'XLA_FLAGS')
    environment = {k: v for k, v in os.environ.items() if k not in quick}
    ended = subprocess.run(
        [sys.executable, str(ROOT / 'tests' / 'cases' / 'notebook.py'), str(NOTEBOOK)],
        cwd=tmp_path,
        env=environment | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = ended.stdout.splitlines()
    assert lines.count('image/png') == 2 and lines.count('text/html') == 1
    assert any(line.startswith('<Leverage: rho_place 0.') for line in lines)
    assert any(line.startswith('gaps ') for line in lines)
    for run in ('routed_0', 'routed_1', 'twin_0', 'twin_1'):
        folder = tmp_path / 'runs' / 'first_steps' / run
        accuracy = json.loads((folder / 'result.json').read_text())['test_accuracy']
        assert accuracy > 0.8, (run, accuracy)
