"""The README.md of an exported folder, made of its card."""

from collections.abc import Mapping
from typing import Any

from moe_vision.config.check import CARD
from moe_vision.run_folder.exported import WEIGHTS

_RUN = """## Run it without moe_vision

In this folder, with `pip install jax flatbuffers`:

```python
from jax import export
program = export.deserialize(bytearray(open('{file}', 'rb').read()))
logits = program.call(images, valid)
```

* `images`: uint8 {images}, prepared as `preprocessing` in `{card}` says; the program scales them.
* `valid`: bool {valid}, {filler}.
* `logits`: float32 {logits}; `classes` in `{card}` names them in order.

{batch}

| program | capacity |
|---|---|
{programs}

A program is code, and each holds all weights. It runs on the platform in its name, and computes
what the run's evaluation computed. Run only programs of people you trust: `moe_vision.load` does
not run them.
"""
_README = """# {network} for {data}

{what} {accuracy}

License of the weights: {license}

{run}
## Read it with moe_vision

```python
import moe_vision

model = moe_vision.load('.')
probabilities = model(images).probabilities
```

`{weights}` holds the weights by path; `{card}` the config of the run, its metrics, the digest of
its data, versions and classes.
"""


def readme(card: Mapping[str, Any]) -> str:
    """The text of README.md."""
    data, classes = card['dataset'], len(card['classes'])
    programs = {n: f for n, f in card['files'].items() if f['holds'] == 'program'}
    height, width, channels = data['image_shape']
    return _README.format(
        network=card['network'],
        data=data['name'],
        what=f'It sorts images of {height} x {width} pixels and {channels} '
        f'channel{"s" * (channels > 1)} into {classes} classes. It was trained for '
        f'{card["step"]} steps.',
        accuracy=_accuracy(card),
        license=card['license'] or 'not said. Ask who exported them.',
        run=_run(card, programs) if programs else '',
        weights=WEIGHTS,
        card=CARD,
    )


def _accuracy(card: Mapping[str, Any]) -> str:
    """The accuracy of these weights, where the run's result is of these weights."""
    metrics = card['metrics'] or {}
    best = card['weights'] != 'last'
    value = metrics.get('test_accuracy_selected' if best else 'test_accuracy')
    if not isinstance(value, float) or not (best or metrics.get('steps') == card['step']):
        return 'Its accuracy was not measured.'
    return f'Test accuracy: {value:.2%}.'


def _run(card: Mapping[str, Any], programs: Mapping[str, Mapping[str, Any]]) -> str:
    unit = card['images_per_group']
    rows = [
        f'| `{name}` | {card["capacities"][file["capacity"]]} |' for name, file in programs.items()
    ]
    whole = (
        f'{unit} images are a routing group, whose images compete for slots: give any multiple of '
        f'{unit}, and fill up with images of zeros.'
    )
    return _RUN.format(
        file=next(iter(programs)),
        card=CARD,
        images=_shape(card['inputs']['images']),
        valid=_shape(card['inputs']['valid']),
        logits=_shape(card['outputs']['logits']),
        filler='False for images that only fill a group: their logits mean nothing'
        if unit > 1
        else 'True for every image',
        batch=whole if unit > 1 else 'Any number of images can be given.',
        programs='\n'.join(rows),
    )


def _shape(of: Mapping[str, Any]) -> str:
    return f'`[{", ".join(map(str, of["shape"]))}]`'
