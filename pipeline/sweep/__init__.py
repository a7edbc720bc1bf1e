"""Many runs: jobs, table, page, going on after a stop."""
