"""`python -m cnf NAME …`: the same as `cnf NAME …`."""

import sys

from cnf.scripts.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
