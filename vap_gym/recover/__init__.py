"""What recordings do not tell: cameras, matches between robot and picture, rectified prompts, hands."""
