"""The schema of the config, its checks and its hash, and mistakes in one line."""

from pipeline.config.given import SIZES, Given, check_hydra, check_top, options_beside, trim
from pipeline.config.messages import CONF, explain
from pipeline.config.schema import (
    Blocks,
    Config,
    Keep,
    SavedConfig,
    Stage,
    Verify,
    check_settings,
    checkpoint_steps,
    command_of,
    config_hash,
    is_config,
    keep,
    last_step,
    params,
    run_name,
    settings_of,
    settle,
)
