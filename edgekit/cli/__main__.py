"""`python -m edgekit.cli`, for where the `edgekit` script is not on the path."""

from edgekit.cli import main

main()
