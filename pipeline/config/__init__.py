"""The schema of the config, its checks and its hash, and mistakes in one line."""

from pipeline.config.command_line import command, interruption, quoted, read_arguments
from pipeline.config.given import SIZES, Given, check_hydra, check_top, options_beside, trim
from pipeline.config.messages import SHOW_TRACEBACKS, explain, log_error, print_error
from pipeline.config.saved_config import SavedConfig
from pipeline.config.schema import (
    FIGURE_FORMATS,
    Blocks,
    Config,
    Keep,
    Stage,
    Verify,
    as_list,
    check_settings,
    checkpoint_steps,
    command_of,
    config_hash,
    figure_formats,
    is_config,
    keep,
    last_step,
    params,
    run_name,
    settings_of,
    settle,
    stages_of,
)
from pipeline.config.suggestions import CONF
