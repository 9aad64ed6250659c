"""Hands of a video as 21-joint skeletons, and (prompt, video) pairs of them (paper: Fig. 3a, Algorithm 1)."""
