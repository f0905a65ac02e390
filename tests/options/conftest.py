"""The tests of this folder share the tables in `option_rows`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
