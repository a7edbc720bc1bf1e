"""The schema of the config, its checks and its hash, and mistakes in one line."""

from pipeline.config.command_line import command, interruption, quoted, read_arguments
from pipeline.config.given import SIZES, Given, check_hydra, check_top, options_beside, trim
from pipeline.config.messages import SHOW_TRACEBACKS, log_error, one_line_message, print_error
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
    flat_settings,
    is_config,
    last_step,
    merge_with_saved,
    run_name,
    save_settings,
    settings_of,
    stages_of,
)
from pipeline.config.suggestions import CONF
