"""Shows a training run while it runs: a line that rewrites itself on a terminal, else lines."""

import contextlib
import io
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO


class Progress:
    """Keeps the clock of a run.

    Args:
      total: steps of the run.
      start: step at which this process starts.
      batch_size: images per step.
      shown: False keeps the clock alone: another process speaks.
      at_peak: seconds of an image on these devices at their peak, where that is known.
    """

    def __init__(self, total: int, start: int, batch_size: int, stream: TextIO = sys.stderr,
                 shown: bool = True, at_peak: float | None = None):
        self._at_peak = at_peak
        self._total, self._batch = total, batch_size
        self._stream, self._terminal = stream if shown else io.StringIO(), stream.isatty() and shown
        self._begin = self._last = float('nan')  # until the first step is done
        self._last_step = self._begin_step = start

    def first_step_done(self, step: int) -> None:
        """Starts the clock: what came before was compiling."""
        self._begin = self._last = time.monotonic()
        self._begin_step = self._last_step = step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock meanwhile: for what is not training, such as a validation."""
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self._begin += seconds
        self._last += seconds

    def timing(self, step: int) -> dict[str, float]:
        """'images_per_second' and 'seconds' since the last call; 'share_of_peak' where known."""
        now = time.monotonic()
        seconds = now - self._last
        steps = step - self._last_step
        self._last, self._last_step = now, step
        rate = steps * self._batch / seconds if steps else float('nan')
        share = {} if self._at_peak is None else {'share_of_peak': rate * self._at_peak}
        return {'images_per_second': rate, 'seconds': seconds, **share}

    def images_per_second(self, step: int) -> float:
        """Over the whole run of this process, compiling and evaluations left out."""
        steps = step - self._begin_step
        seconds = time.monotonic() - self._begin
        return steps * self._batch / seconds if steps else float('nan')

    def show(self, row: dict[str, Any]) -> None:
        """Shows a metrics row of training."""
        step = row['step']
        rate = row['timing']['images_per_second']
        parts = [f'step {step}/{self._total}', f'epoch {row["epoch"]:.1f}',
                 f'loss {row["loss"]:.3f}', f'acc {row["accuracy"]:.3f}']
        layers = row['layers'].values()
        if layers:
            parts += [f'drop {max(x["drop_rate"] for x in layers):.1%}',
                      f'max/mean {max(x["max_over_mean"] for x in layers):.2f}']
        if row.get('skipped'):
            parts.append(f'skipped {row["skipped"]}')
        if rate == rate:
            left = (self._total - step) * self._batch / rate
            parts.append(f'{rate:,.0f} img/s')
            if 'share_of_peak' in row['timing']:
                parts.append(f'{row["timing"]["share_of_peak"]:.1%} of peak')
            parts.append(f'ETA {_clock(left)}')
        text = '  '.join(parts)
        if self._terminal:
            filled = int(20 * step / self._total)
            bar = '█' * filled + '·' * (20 - filled)
            self._stream.write(f'\r\x1b[2K{bar} {text}')
        else:
            self._stream.write(text + '\n')
        self._stream.flush()

    def clear(self) -> None:
        """Takes the bar away, before something else is written."""
        if self._terminal:
            self._stream.write('\r\x1b[2K')
            self._stream.flush()

    def done(self) -> None:
        """Leaves the bar as it is and goes to the next line."""
        if self._terminal:
            self._stream.write('\n')
            self._stream.flush()

    def line(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._stream.write(f'\r\x1b[2K{text}\n' if self._terminal else text + '\n')
        self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f'{hours}:{m:02d}:{s:02d}' if hours else f'{m}:{s:02d}'
