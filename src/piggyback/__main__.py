"""``python -m piggyback``: the command line."""

from piggyback.cli import main

main()
