"""The learned world model: codec, CogVideoX transformer with an action branch, sampler, and state in and out."""
