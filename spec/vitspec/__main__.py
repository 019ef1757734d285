"""`python -m vitspec`: the command `vitspec`."""

from vitspec.cli import main

main()
