"""tokens.npz: 200 sequences of 7 token ids; the label says whether the first token is even."""

import numpy as np

tokens = np.random.default_rng(0).integers(0, 12, (200, 7))
np.savez("tokens.npz", tokens=tokens, even=tokens[:, 0] % 2)
