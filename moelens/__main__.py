"""The command line as `python -m moelens`."""

import sys

from moelens.commands.command_line import main

sys.exit(main())
