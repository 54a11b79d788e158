"""What a plan says of the repositories it reads: their licences, and who may read them."""

from collections.abc import Iterable, Iterator

from jobs.pinned import PinnedInput
from merge.errors import Finding


def remarks(inputs: Iterable[PinnedInput]) -> Iterator[Finding]:
    """Warnings about the inputs that are on the Hub; a repository that is named twice is told once."""
    each_once = {each.name: (each.role, each.snapshot) for each in inputs if each.snapshot is not None}
    for name, (role, snapshot) in each_once.items():
        if snapshot.gated or snapshot.private:
            word = "gated" if snapshot.gated else "private"
            message = f"{name} is {word}; its terms bind the result; a public output must be confirmed."
            yield Finding("warning", f"input_{word}", message, None, role)
        if snapshot.license is None:
            yield Finding("warning", "license_missing", f"{name} states no licence.", None, role)
        elif "-nd" in snapshot.license.lower():
            message = f"The licence of {name} ({snapshot.license}) allows no derived works."
            yield Finding("warning", "license_no_derivatives", message, None, role)
    licenses = sorted({snapshot.license for _, snapshot in each_once.values() if snapshot.license})
    if len(licenses) > 1:
        message = f"The inputs have different licences ({', '.join(licenses)}); respect all of them."
        yield Finding("warning", "licenses_differ", message)
