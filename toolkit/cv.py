"""OpenCV, imported on first use: it comes from ``opencv-python`` or ``opencv-python-headless``, never both."""

import functools
import importlib
import os
from types import ModuleType

from toolkit.errors import MissingDependency

__all__ = ["opencv"]


@functools.cache
def opencv() -> ModuleType:
    """Return the ``cv2`` module with its console noise turned off.

    Raises:
        MissingDependency: neither wheel of OpenCV is installed.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg prints to stderr by itself otherwise
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        raise MissingDependency("opencv-python", "camera") from error
    # OpenCV 4 has it at the top, OpenCV 5 among its utilities; 0 is silent in both.
    (cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)
    return cv2
