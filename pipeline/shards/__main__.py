"""The command `python -m pipeline.shards verify FOLDER`."""

from pipeline.shards.verify import main

main()
