"""Planning: search over actions for the best future that a world model, or the simulator, foresees."""
