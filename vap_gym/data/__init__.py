"""Data: videos and episodes on disk, in LeRobot's v3 layout."""

from vap_gym.data.encoded import PictureBytes, VideoFile
from vap_gym.data.episodes import Episode, EpisodeSet, describe
from vap_gym.data.gather import finalise
from vap_gym.data.layout import Column, DataError, Features
from vap_gym.data.video import read_video, write_video
from vap_gym.data.writer import EpisodeWriter

__all__ = [
    "Column",
    "DataError",
    "Episode",
    "EpisodeSet",
    "EpisodeWriter",
    "Features",
    "PictureBytes",
    "VideoFile",
    "describe",
    "finalise",
    "read_video",
    "write_video",
]
