"""`python -m vitfast`: the command `vitfast`."""

from vitfast.cli import main

main()
