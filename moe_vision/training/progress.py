"""Shows the progress of a training run: a bar on a terminal, otherwise lines."""

import contextlib
import io
import math
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO


class Progress:
    """Measures the speed of a run and shows how far it is.

    Args:
      total: steps of the run.
      start: steps that were done before this process started.
      batch_size: images per step.
      shown: False only measures, because another process shows the progress.
      seconds_at_peak: seconds to train on one image at the peak of these devices, if it is known.
    """

    def __init__(
        self,
        total: int,
        start: int,
        batch_size: int,
        stream: TextIO = sys.stderr,
        shown: bool = True,
        seconds_at_peak: float | None = None,
    ):
        self._seconds_at_peak = seconds_at_peak
        self._total, self._batch = total, batch_size
        self._stream, self._terminal = stream if shown else io.StringIO(), stream.isatty() and shown
        self._begin = self._last = float('nan')  # until the first step is done
        self._last_step = self._begin_step = start

    def first_step_done(self, step: int) -> None:
        """Starts the clock, now that compiling is over."""
        self._begin = self._last = time.monotonic()
        self._begin_step = self._last_step = step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock during the block, which is not training: a validation, for example."""
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self._begin += seconds
        self._last += seconds

    def timing(self, step: int) -> dict[str, float]:
        """'images_per_second' and 'seconds' since the last call; 'share_of_peak' if it is known."""
        now = time.monotonic()
        seconds = now - self._last
        steps = step - self._last_step
        self._last, self._last_step = now, step
        rate = steps * self._batch / seconds if steps else float('nan')
        share = (
            {} if self._seconds_at_peak is None else {'share_of_peak': rate * self._seconds_at_peak}
        )
        return {'images_per_second': rate, 'seconds': seconds, **share}

    def images_per_second(self, step: int) -> float:
        """The rate since this process began to train, without compiling and evaluations."""
        steps = step - self._begin_step
        seconds = time.monotonic() - self._begin
        return steps * self._batch / seconds if steps else float('nan')

    def show(self, row: dict[str, Any]) -> None:
        """Shows a row of training metrics."""
        step = row['step']
        rate = row['timing']['images_per_second']
        parts = [
            f'step {step}/{self._total}',
            f'epoch {row["epoch"]:.1f}',
            f'loss {row["loss"]:.3f}',
            f'acc {row["accuracy"]:.3f}',
        ]
        layers = row['layers'].values()
        if layers:
            parts += [
                f'drop {max(x["drop_rate"] for x in layers):.1%}',
                f'max/mean {max(x["max_over_mean"] for x in layers):.2f}',
            ]
        if row.get('skipped'):
            parts.append(f'skipped {row["skipped"]}')
        if not math.isnan(rate):
            left = (self._total - step) * self._batch / rate
            parts.append(f'{rate:,.0f} img/s')
            if 'share_of_peak' in row['timing']:
                parts.append(f'{row["timing"]["share_of_peak"]:.1%} of peak')
            parts.append(f'ETA {_clock(left)}')
        line = '  '.join(parts)
        if self._terminal:
            filled = int(20 * step / self._total)
            bar = '█' * filled + '·' * (20 - filled)
            self._stream.write(f'\r\x1b[2K{bar} {line}')
        else:
            self._stream.write(line + '\n')
        self._stream.flush()

    def clear(self) -> None:
        """Removes the bar before something else is written."""
        if self._terminal:
            self._stream.write('\r\x1b[2K')
            self._stream.flush()

    def done(self) -> None:
        """Leaves the bar in place and moves to the next line."""
        if self._terminal:
            self._stream.write('\n')
            self._stream.flush()

    def line(self, text: str) -> None:
        """Writes a line of its own, above the bar."""
        self._stream.write(f'\r\x1b[2K{text}\n' if self._terminal else text + '\n')
        self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f'{hours}:{m:02d}:{s:02d}' if hours else f'{m}:{s:02d}'
