"""The stage that makes matrices: checks before the work, matrices, certificates, cost estimates, the loss landscape."""
