"""``python -m ameir_fast.cli``."""

from . import main

main()
