"""A text cut into the fewest tokens of a vocabulary, or from its end."""

from collections.abc import Iterator, Mapping


class Pieces:
    """Cuts bytes into tokens that have a row; ``meanings`` maps bytes to ids."""

    def __init__(self, meanings: Mapping[bytes, int], rows: int) -> None:
        self._rows = {text: row for text, row in meanings.items() if text and row < rows}
        self._longest = max(map(len, self._rows), default=0)

    def of(self, text: bytes) -> tuple[int, ...]:
        """Rows of the fewest tokens that make up ``text``, among equals the one that begins with the longest
        token; nothing where it cannot be made up.
        """
        best: list[tuple[int, int] | None] = [None] * len(text) + [(0, len(text))]
        for begin in range(len(text) - 1, -1, -1):
            for end in range(min(len(text), begin + self._longest), begin, -1):
                rest, known = best[end], best[begin]
                if rest is None or (known is not None and known[0] <= rest[0] + 1):
                    continue
                if text[begin:end] in self._rows:
                    best[begin] = (rest[0] + 1, end)
        if best[0] is None:
            return ()
        found, at = [], 0
        while at < len(text):
            step = best[at]
            assert step is not None  # a way from the start leads to the end
            found.append(self._rows[text[at : step[1]]])
            at = step[1]
        return tuple(found)


def beginnings(text: bytes) -> Iterator[bytes]:
    """Shorter and shorter beginnings, by whole letters, as long as there is more in them than white space."""
    letters = text.decode("utf-8", "surrogateescape")
    for end in range(len(letters) - 1, 0, -1):
        if not letters[:end].strip():
            return
        yield letters[:end].encode("utf-8", "surrogateescape")
