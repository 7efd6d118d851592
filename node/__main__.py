"""`python -m node` is `locum-node`."""

from node.cli import main

main()
