"""One description of a run, built once from its config."""
