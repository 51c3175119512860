"""Packs the rows and timings of a study, in one process at a time and while nobody trains."""

from moe_vision.common.errors import UserError
from moe_vision.config import rules
from moe_vision.study import registration, rows
from moe_vision.study.run.claims import Claims

_LOCK = '.pack', 0  # no arm has this name


def pack(workdir: str) -> list[str]:
    """Merges the files of all cells into W/rows.jsonl and W/timings.jsonl.

    It can be repeated: cells that were finished since are merged; without any, nothing changes.

    Returns:
      lines that say what was done.

    Raises:
      UserError: the folder holds no study, another process works on it, or it cannot be written.
    """
    record, _ = registration.read(workdir)
    rules.check_workdir(workdir, create=False)
    with Claims(workdir) as claims:
        if not claims.take(_LOCK):
            raise UserError(f"another process packs '{workdir}'; start again when it has ended.")
        for arm in record['arms']:
            for seed in record['seeds']:
                if claims.taken((arm, seed)):
                    who = claims.owner((arm, seed)) or 'another process'
                    raise UserError(
                        f"{who} works on {arm} seed {seed} in '{workdir}'; pack when it has ended."
                    )
        return rows.pack(workdir, record)
