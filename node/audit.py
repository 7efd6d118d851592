"""What people at the site decided, as the ledger keeps it: who, why, and over exactly what."""

import unicodedata

from protos.plan import Record

LONGEST_NAME, LONGEST_REASON = 80, 500  # characters


class Unsigned(ValueError):
    """A decision without a proper name or reason; one sentence."""


class Decision(Record):
    """A held handover was released or withheld; `handover` is the SHA-256 of all that was shown, see node/held.py."""

    by: str
    why: str
    handover: str


class PolicyChange(Record):
    """The site's policy changed; `before` and `after` are the file's text, None where there is no file.

    `by` is nobody where the file was changed otherwise than by Locum. Of a text that is too long to keep only the
    SHA-256 is there, which is nothing where there is no file.
    """

    by: str = ""
    why: str = ""
    before: str | None
    after: str | None
    before_sha256: str
    after_sha256: str


def signature(by: str, why: str | None) -> tuple[str, str]:
    """A person's name and reason, fit for the ledger; None: no reason is asked for. Raises Unsigned."""
    by, reason = by.strip(), "" if why is None else why.strip()
    if not by or (why is not None and not reason):
        raise Unsigned("This is done in the name of a person and for a reason; fill in --by and --why.")
    for text, longest, option in ((by, LONGEST_NAME, "--by"), (reason, LONGEST_REASON, "--why")):
        if len(text) > longest:
            raise Unsigned(f"{option} has {len(text)} characters; {longest} are enough.")
        if any(unicodedata.category(character).startswith("C") for character in text):
            raise Unsigned(f"{option} holds a control or formatting character; write it in plain text, on one line.")
    return by, reason
