"""The schema of the config, its checks and its hash, and mistakes in one line."""
