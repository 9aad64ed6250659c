"""The paper's video model at every size: CogVideoX with an action branch, its conditions, samplers and files."""
