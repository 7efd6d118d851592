"""What went wrong, as a code and a fixed sentence; nothing leaves of an exception's text or of a strategy's own names.

These functions are to be called where the exception is caught: the log takes it from there.
"""

import builtins
import logging
import sys
from types import MappingProxyType

from node.files import is_full_disk
from protos.refusals import OtherVersion, Refusal, RefusalCode

_log = logging.getLogger("locum.node.guard")

# The work was let in and came to no good end; with every other code the node refuses.
FAILURES = frozenset(
    {
        RefusalCode.EXCEPTION,
        RefusalCode.ERROR_REPLY,
        RefusalCode.SITE_DATA,
        RefusalCode.MEMORY,
        RefusalCode.DIVERGED,
        RefusalCode.DIED,
        RefusalCode.DISK_FULL,
    }
)
# The work behind the guard may refuse so; its own sentence goes to the log, and this one into the ledger.
_AT_FAULT = MappingProxyType(
    {
        RefusalCode.SITE_DATA: "The site's data cannot be used; the node's log says why.",
        RefusalCode.MEMORY: "The cases kept for rehearsal cannot be used; the node's log says why.",
        RefusalCode.POLICY: "The site's policy forbids the rehearsal; the node's log says what.",
    }
)
# Only these names leave: the name of a class that a strategy made could carry data.
_EXCEPTIONS = tuple(
    kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, BaseException)
)


class Raised(Refusal):
    """The work behind the guard raised an exception, of whose class a name may leave."""

    def __init__(self, error: BaseException) -> None:
        self._name = _name_of(error)
        super().__init__(RefusalCode.EXCEPTION, f"The work raised {self._name}; the node's log holds its text.")

    @property
    def reason(self) -> str:
        """The name, all that the coordinator hears."""
        return self._name


def failure_of_work(error: BaseException) -> Refusal:
    """What is said of an exception that the work behind the guard raised; the node's log gets its text."""
    if type(error) is Refusal and error.code in _AT_FAULT:
        _log.error("The site refuses with %s: %s", error.code.name, error.detail)
        return Refusal(error.code, _AT_FAULT[error.code])
    if type(error) is FloatingPointError:  # a class that a strategy made of it tells nothing
        _log.exception("Training diverged: its loss is no longer finite.")
        return Refusal(RefusalCode.DIVERGED, "The loss is no longer finite; the node's log says at which step.")
    if type(error) is Refusal and error.code is RefusalCode.UNPROTECTED:
        return error
    if is_full_disk(error):
        _log.error("The disk is full: %s", getattr(error, "orig", error))
        return Refusal(RefusalCode.DISK_FULL, "The node's disk is full; its log says where.")
    _log.exception("The work behind the guard was ended by an exception.")
    return Raised(error)


def refusal_for(error: BaseException) -> Refusal:
    """The refusal itself if it is one of ours, otherwise one that says that the guard failed."""
    if isinstance(error, Refusal) and any(type(error) is known for known in (Refusal, OtherVersion, Raised)):
        return error
    _log.exception("The guard itself failed.")
    return Refusal(RefusalCode.GUARD, f"The guard raised {_name_of(error)}.")


def _name_of(error: BaseException) -> str:
    """The name of an exception's class if it is one that no strategy can have made, otherwise "Exception".

    Classes are compared by identity: a class may have a metaclass that claims to equal any other.
    """
    if any(type(error) is known for known in _EXCEPTIONS):
        return type(error).__name__
    torch = sys.modules.get("torch")
    if torch is not None and type(error) is torch.OutOfMemoryError:
        return "OutOfMemoryError"
    return "Exception"
