"""Sets up what commands log to stderr."""

import logging as python_logging

from absl import logging


def to_stderr() -> None:
    """Shows our own messages from level INFO, those of libraries from WARNING."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(
        python_logging.Formatter('%(asctime)s %(levelname).1s %(message)s', '%H:%M:%S')
    )
    handler.addFilter(lambda r: r.levelno >= 30 or 'site-packages' not in r.pathname)


def for_process(process: int) -> None:
    """Makes processes other than 0 show warnings only, with their number."""
    if process:
        handler = logging.get_absl_handler()
        handler.setLevel(python_logging.WARNING)
        handler.setFormatter(
            python_logging.Formatter(
                f'%(asctime)s %(levelname).1s process {process}: %(message)s', '%H:%M:%S'
            )
        )
