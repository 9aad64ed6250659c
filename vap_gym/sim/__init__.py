"""The oracle: a PyBullet table-top with the same scenes, cameras and controller as the imagination."""
