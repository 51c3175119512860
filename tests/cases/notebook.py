"""Runs the code cells of a notebook in this process, and shows what each gives as Jupyter would.

python tests/cases/notebook.py examples/first_steps.ipynb
"""

import ast
import json
import sys
from pathlib import Path


def run(path: str) -> list[str]:
    """What the cells show at their ends: 'image/png', 'text/html' or the text itself."""
    names: dict = {'__name__': '__main__'}
    shown = []
    for cell in json.loads(Path(path).read_text())['cells']:
        if cell['cell_type'] != 'code':
            continue
        tree = ast.parse(''.join(cell['source']))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, path, 'exec'), names)
        value = eval(compile(ast.Expression(last.value), path, 'eval'), names) if last else None
        if value is not None:
            shown.append(show(value))
            print(shown[-1], flush=True)
    return shown


def show(value) -> str:
    for name, kind in (('_repr_png_', 'image/png'), ('_repr_html_', 'text/html')):
        if hasattr(value, name):
            assert getattr(value, name)()
            return kind
    return repr(value)


if __name__ == '__main__':
    run(sys.argv[1])
