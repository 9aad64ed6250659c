"""Prompts: the robot's commanded motion as pictures, the condition that drives the world model."""
