"""``python -m odin.cli``: the ``odin`` command."""

from __future__ import annotations

import sys

from odin.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
