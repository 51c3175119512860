"""The field of one key of a config: its default, what it means, and what it may be."""

import copy
import dataclasses
from typing import Literal, TypeVar

_T = TypeVar('_T')


def key(
    default: _T,
    meaning: str,
    *,
    positive: bool = False,
    below_one: bool = False,
    share: bool = False,
    infinite: bool = False,
    at_most: int | None = None,
    path: bool = False,
    changes: Literal['never', 'freely', 'upward'] = 'never',
) -> _T:
    """The dataclass field of one key. A number is finite and at least 0 unless stated otherwise.

    Args:
      default: of the type that stands before it.
      meaning: what the key does, as the comment in `configs/base.py`.
      positive: 0 is not allowed; of a list of numbers, in no item.
      below_one: the number lies in [0, 1).
      share: the number lies in [0, 1].
      infinite: inf is allowed.
      at_most: the largest number; None takes that of an int32 or a float32. More would exhaust the
        memory before anything is noticed, or end in a traceback; damage may say any number.
      path: it names a folder; `~` at its start is the home folder.
      changes: what may happen to the key when a run goes on in its folder. 'freely': the steps that
        were done and those to come are the same steps under any value. 'upward': the run may get
        longer. 'never': another value makes another run, which needs a folder of its own.
    """
    metadata = {
        'meaning': meaning,
        'positive': positive,
        'below_one': below_one,
        'share': share,
        'infinite': infinite,
        'at_most': at_most,
        'path': path,
        'changes': changes,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
