"""`python -m appliance.cli` is the `strongroom` command."""

import sys

from appliance.cli.entry import main

sys.exit(main())
