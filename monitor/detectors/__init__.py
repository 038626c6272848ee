"""Detectors of change in the stages' slowdown, one per file.

``page_hinkley`` and ``adwin`` need the package ``river`` (``pip install 'odin-pipeline[compare]'``) and are imported
from their own files.
"""

from odin.monitor.detectors.base import Detector
from odin.monitor.detectors.cusum import CusumDetector
from odin.monitor.detectors.threshold import ThresholdDetector

__all__ = ["CusumDetector", "Detector", "ThresholdDetector"]
