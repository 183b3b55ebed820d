"""`python -m layerwise` is `layerwise`."""

import sys

from layerwise.cli import main

sys.exit(main())
