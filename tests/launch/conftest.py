"""Tests that start the whole program, as a user does: processes of their own, signals, exit codes, time."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # so that test_launch.py can import its worker by name
