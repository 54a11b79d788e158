"""Linear algebra rounds alike on every processor here, so that committed bytes are those of all machines."""

import os

os.environ.setdefault("MKL_CBWR", "COMPATIBLE")  # read by the library when torch first calls it
