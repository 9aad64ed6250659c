"""A window for render_mode="human", by pygame; a clear error where there is no display."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vap_gym.errors import VapError, require

SCALE = 4  # screen pixels per frame pixel


class Viewer:
    """A window of a frame size [px], refreshed at `fps` at most.

    Raises:
        MissingDependencyError: pygame is not installed.
        VapError: there is no display.
    """

    def __init__(self, frame_size_px: tuple[int, int], fps: float) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        self._pygame: Any = require("pygame", "pygame", "render_mode='human'")
        self._fps = fps
        self._size_px = (frame_size_px[0] * SCALE, frame_size_px[1] * SCALE)
        self._open()

    def _open(self) -> None:
        display = self._pygame.display
        try:
            display.init()
            driver = display.get_driver()
            if driver in ("offscreen", "dummy") and os.environ.get("SDL_VIDEODRIVER") != driver:
                raise self._pygame.error("SDL found no screen")  # what it falls back to shows nothing to anybody
            self._screen = display.set_mode(self._size_px)
        except self._pygame.error as error:
            display.quit()
            raise VapError(
                f"render_mode='human' needs a display, and there is none ({error}). "
                "Use render_mode='rgb_array', or SDL_VIDEODRIVER=dummy for a window that nobody sees."
            ) from error
        display.set_caption("vap-gym")
        self._clock = self._pygame.time.Clock()

    def show(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        """Put a frame on the screen, waiting so as not to run faster than `fps`; a closed window opens again."""
        if not self._pygame.display.get_init():
            self._open()
        surface = self._pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self._screen.blit(self._pygame.transform.scale(surface, self._size_px), (0, 0))
        self._pygame.event.pump()
        self._pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        """Close the window; harmless when called twice."""
        self._pygame.display.quit()
