"""What a cell of a data set has to hold: a text, the letter of an option, a whole number.

Nothing stops a model from answering "None\\nA. a\\nB. None", and the answer would be scored. So
what is asked is read here, where a value that makes no question ends the run and is named:

    written(None, "question", "POPE, row 3")
    # RedlibError: POPE, row 3: 'question' must hold a text; got None
"""

from collections.abc import Mapping, Sequence
from typing import Any

from redlib.errors import RedlibError


def there(value: Any) -> str:
    """A text that may be missing: None, or "nan" where the table came through pandas."""
    return "" if value is None or str(value).strip().lower() == "nan" else str(value)


def written(value: Any, field: str, where: str) -> str:
    """A text that has to be there; numbers count as such, since some copies hold "2" as 2.

    Raises RedlibError, saying `where`, for nothing, blanks, half a character and all else.
    """
    if not isinstance(value, str | int | float) or not there(value).strip():
        raise RedlibError(f"{where}: {field!r} must hold a text; got {value!r}")
    return _encodable(str(value), field, where)


def _encodable(text: str, field: str, where: str) -> str:
    """A text as it is. JSON can write one half of a character, "\\ud83d", which no tokenizer takes.

    Raises RedlibError, saying `where`, for a text with one.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RedlibError(
            f"{where}: {field!r} holds half a character, which is no UTF-8; got {text!r}: fetch "
            "the data set again"
        ) from None
    return text


def letter(value: Any, options: int, where: str) -> str:
    """The letter of one of so many options. Raises RedlibError for all else."""
    found = str(value).strip().upper()
    if len(found) != 1 or not 0 <= ord(found) - 65 < options:
        raise RedlibError(
            f"{where}: 'answer' must be the letter of one of {options} options; got {value!r}"
        )
    return found


def whole(value: Any, field: str, where: str) -> int:
    """A whole number that counts something, which some copies hold as text: a row's own number.

    Raises RedlibError for all else, for True, which Python takes for 1, and below zero.
    """
    try:
        number = int(value)
        if (isinstance(value, str) or number == value) and not isinstance(value, bool):
            if number >= 0:
                return number
            raise RedlibError(f"{where}: {field!r} must not be below zero; got {value!r}")
    except (TypeError, ValueError, OverflowError):  # the last for infinity
        pass
    raise RedlibError(f"{where}: {field!r} must hold a whole number; got {value!r}")


def names(plain: Sequence[Mapping[str, Any]], field: str, name: str) -> list[str]:
    """What the rows of the data set `name` are called in `field`.

    Raises RedlibError for no text, and if two rows are called alike: answers are kept by that name,
    and those to the one would be lost, or told of the other's picture.
    """
    own = [written(row[field], field, f"{name}, row {at}") for at, row in enumerate(plain)]
    once(own, field, name)
    return own


def once(own: Sequence[str | int], field: str, name: str) -> None:
    """Raises RedlibError if two rows of the data set `name` are called alike in `field`."""
    first: dict[str | int, int] = {}
    for at, called in enumerate(own):
        if first.setdefault(called, at) != at:
            raise RedlibError(
                f"{name}: rows {first[called]} and {at} have the same {field!r}, {called!r}; every "
                "row needs its own: fetch the data set again"
            )


def texts(value: Any, field: str, where: str) -> tuple[str, ...]:
    """The texts in a column of answers or captions, in each form that data sets store them.

    value: a list of texts, a list of {field: text, ...}, {field: [texts], ...}, one text, or None.
    Raises RedlibError, saying `where`, for half a character and all else.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return (_encodable(value, field, where),)
    if isinstance(value, dict):
        return texts(value.get(field), field, where)
    if isinstance(value, list):
        return tuple(text for item in value for text in texts(item, field, where))
    return (written(value, field, where),)
