"""The composition root: one command, from the config to the report, stage by stage."""

from pipeline.run.command import job, main, run
