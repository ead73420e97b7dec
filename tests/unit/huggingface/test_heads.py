"""Classifiers and span finders leave for transformers and come back, with labels and equal scores."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import SMALL
