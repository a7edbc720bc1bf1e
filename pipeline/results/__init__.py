"""What a run leaves behind, typed: the contract between those who write results and those who read them."""
