"""`python -m dataprune`, and so `torchrun -m dataprune`."""

from .cli import main

main()
