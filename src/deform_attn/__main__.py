"""The command as a module: `python -m deform_attn`."""

import sys

from deform_attn.cli import main

if __name__ == "__main__":
    sys.exit(main())
