"""What keeps the demo from going on."""


class DemoFailed(Exception):
    """The demo cannot go on; the sentence says why and what to do."""


class TextsMissing(DemoFailed):
    """A source of text is not on this machine and could not be fetched."""


class PackageMissing(DemoFailed):
    """A package could not be fetched from the package index."""
