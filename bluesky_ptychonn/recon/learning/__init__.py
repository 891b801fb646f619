"""Learning on from finished runs: intake, candidate, judgement."""
