"""Finds the files below a folder, at any depth, and names what it leaves out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.bmp', '.tif', '.tiff')


def named_as_image(name: str) -> bool:
    """Whether a name has the ending of an image, in upper or lower case."""
    return name.lower().endswith(IMAGE_ENDINGS)


def hidden(name: str) -> bool:
    """Whether the name is one that file managers do not show."""
    return name.startswith('.')


def files_below(folder: str, left_out: Callable[[str, str], None]) -> list[str]:
    """Returns the visible files below a folder, sorted. Hidden folders are not entered.

    Links to folders are followed, but no folder is read twice, and none that holds `folder`: a
    link may lead back.

    Args:
        folder: where to look.
        left_out: called with the path of a folder that is not read, and why.

    Returns:
        The paths of all that is no folder, also of FIFOs and of links that lead nowhere.
    """
    found: list[tuple[str, ...]] = []
    above = Path(os.path.realpath(folder)).parents
    seen = {_place(path) for path in above}

    def failed(error: OSError) -> None:
        left_out(str(error.filename), error.strerror or str(error))

    for at, below, names in os.walk(folder, onerror=failed, followlinks=True):
        if (place := _place(at)) in seen:
            left_out(at, 'it is a link to a folder above, or to one that was read already')
            below.clear()
            continue
        seen.add(place)
        inside = tuple(os.path.relpath(at, folder).split(os.sep)) if at != folder else ()
        found += [(*inside, name) for name in names if not hidden(name)]
        for name in below:
            if named_as_image(name) and not hidden(name):
                left_out(os.path.join(at, name), 'it is a directory')
        entered = sorted(n for n in below if not (hidden(n) or named_as_image(n)))
        below[:] = sorted(entered, key=lambda n: os.path.islink(os.path.join(at, n)))
    return [os.path.join(folder, *parts) for parts in sorted(found)]


def _place(path: str | Path) -> tuple[int, int]:
    """Tells folders apart that links give several names."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
