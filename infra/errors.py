"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """A sentence that says what was wrong, where, and what to do. Jobs print it and exit with code 2.

    `shared`: every rank raises it, so that one of them is enough to print it.
    """

    shared = False
    code = 2
    """With which a job ends."""


class NotInstalled(UserError):
    """A package of an extra is not installed: who did not ask for what it does can go on without."""


class Unusable(UserError):
    """One sample cannot be used, and the others can: whoever reads them all leaves it out and counts it."""


def nearest(name: str, known: list[str]) -> str:
    """A hint like "; did you mean 'label'?", or the whole list where nothing is near."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(match) for match in close) + "?"
    return "; known are: " + ", ".join(known)
