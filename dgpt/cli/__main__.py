"""`python -m dgpt.cli`."""

import sys

from dgpt.cli import main

sys.exit(main())
