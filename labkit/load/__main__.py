"""``python -m labkit.load``: see :mod:`labkit.load.child`."""

import sys

from labkit.load.child import main

sys.exit(main())
