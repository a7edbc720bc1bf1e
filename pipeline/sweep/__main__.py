"""The command `python -m pipeline.sweep FOLDER`."""

from pipeline.sweep.summary import main

raise SystemExit(main())
