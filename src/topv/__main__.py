"""`python -m topv` is the `topv` command."""

from topv.cli.main import main

raise SystemExit(main())
