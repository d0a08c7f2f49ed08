"""`python -m recipes.cli train …` is the same as `multisagd train …`."""

import sys

from recipes.cli.main import main

sys.exit(main())
