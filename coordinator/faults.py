"""Exit statuses, and the sentences for faults that are no programming errors. Imports nothing that takes a while."""

DONE, FAILED, USAGE, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 130

# By name, so that telling them apart imports none of the modules that they are from.
_STATUSES = {
    **dict.fromkeys(
        ("ScenarioError", "UnknownRun", "RunBusy", "NotSkippable", "NotComparable", "NotExportable"), USAGE
    ),
    **dict.fromkeys(("VisitFailed", "MissingArtifact", "NoSuperLink", "UnusableKey"), FAILED),
    **dict.fromkeys(("StoreUnusable", "StoreDamaged", "NotRestorable"), FAILED),
    # of the control service, and of those who ask it
    **dict.fromkeys(("ConfigError", "NotPossible", "NoCoordinator", "NoTime", "Refused"), USAGE),
    **dict.fromkeys(("ServiceBusy", "ServiceFailed", "Unreachable"), FAILED),
    # of the overview
    **dict.fromkeys(("CannotListen", "UnusableSecret", "NoReport"), FAILED),
}
_OF_ONE_RUN = {"VisitFailed", "MissingArtifact"}


def exit_status(error: Exception) -> int | None:
    """The exit status of an expected fault; None for a programming error."""
    if isinstance(error, OSError) or _is_of_the_superlink(error) or _reason_of_database(error) is not None:
        return FAILED
    return _STATUSES.get(type(error).__name__)


def of_one_run(error: Exception) -> bool:
    """Whether the fault ends one run of a study and leaves the others a chance."""
    return type(error).__name__ in _OF_ONE_RUN


def told(error: Exception) -> list[str]:
    """An expected fault in sentences with a remedy."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        reason = error.strerror or str(error) or type(error).__name__
        return [f"{where}{reason}; free or mend the disk, or name another place with --home."]
    if (said := _reason_of_database(error)) is not None:
        return [f"The database could not be used ({said}); free or mend its disk, or name another with --database."]
    if _is_of_the_superlink(error):
        return [f"The SuperLink does not answer as it should ({type(error).__name__}); its log may say why."]
    return str(error).splitlines()


def _is_of_the_superlink(error: Exception) -> bool:
    """Whether a call to it failed; nobody else is called over HTTP."""
    return any(kind.__module__.partition(".")[0] == "httpx" for kind in type(error).__mro__)


def _reason_of_database(error: Exception) -> str | None:
    """What a database's driver said, without the statement and its values; None if it was not a driver."""
    from sqlalchemy.exc import DBAPIError

    if not isinstance(error, DBAPIError):
        return None
    return next(iter(str(error.orig).strip().splitlines()), type(error.orig).__name__).rstrip(".")
