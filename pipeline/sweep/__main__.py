"""The commands `python -m pipeline.sweep FOLDER` and `python -m pipeline.sweep resume FOLDER`."""

import sys

from pipeline.sweep import resume, summary
from pipeline.system import prepare_terminal

prepare_terminal()
if sys.argv[1:2] == ["resume"]:
    resume.main(sys.argv[2:])
raise SystemExit(summary.main())
