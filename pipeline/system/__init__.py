"""Files that appear whole, the run folder, its status, the terminal, memory and disk, SLURM's commands."""
