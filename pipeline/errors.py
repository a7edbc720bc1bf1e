"""The one exception that is meant for the user."""


class PipelineError(Exception):
    """A mistake of the user or a fault of the machine, in one line: what is wrong, the value, the remedy.

    `pipeline.run` prints it without a traceback and exits with status 1.
    """
