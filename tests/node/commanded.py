"""`locum-node` as a test calls it."""

from node import cli


def command(*words: str) -> int:
    """The exit status of `locum-node` with these words."""
    try:
        cli.main(list(words))
    except SystemExit as end:
        return int(end.code or 0)
    return 0
