"""The version, for the command, the wheel and `pipeline.__version__`."""

__version__ = "0.2.0"
