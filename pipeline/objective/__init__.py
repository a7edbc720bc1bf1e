"""The loss as a function of the weights, differentiable twice, and the problem that it belongs to."""
