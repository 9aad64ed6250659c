"""Training: recipes in TOML, runs that can be killed and resumed exactly, the codec's and the world model's losses."""
