"""CSV cells that a spreadsheet shows as they are."""

_FORMULA = ('=', '+', '-', '@', '\t', '\r', '\n')


def shown(text: str) -> str:
    """The text with an apostrophe before it where a spreadsheet would take it for a formula.

    A name in a stranger's study may be one that runs a program. Numbers such as -0.5 stay. A
    carriage return becomes a space, since the writer does not quote it and a reader ends the row.
    """
    whole = text.replace('\r', ' ')
    if not text.startswith(_FORMULA):
        return whole
    try:
        float(text)
    except ValueError:
        return f"'{whole}"
    return whole
