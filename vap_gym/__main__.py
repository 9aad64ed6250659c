"""`python -m vap_gym`, the same as `vap-gym`."""

import sys

from vap_gym.cli import main

sys.exit(main())
