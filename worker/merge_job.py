"""The story of one merge job, in order: claim, plan, download, merge, check and score, push or keep, succeed.

Every step can be done again: a later attempt finds the downloads and the shards that are there and goes on from them.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from hub.card import render_card
from hub.upload import CommitResult, Push
from jobs import credentials, lifecycle
from jobs.planning import Planned, Planner
from jobs.request import JobRequest
from merge.run import Progress, Report, ShardDone
from merge.run import run as run_merge
from worker import device as devices
from worker.artifacts import artifact_folder, keep
from worker.context import JobContext
from worker.endings import describe, settle_stop
from worker.errors import Interrupted, OutputUnsafe, Stop
from worker.evaluation import Evaluator, Verdict
from worker.inputs import fetch
from worker.scratch import WorkFolder, ensure_room
from worker.uploads import Uploads
from worker.workshop import Workshop

log = structlog.get_logger("worker.merge_job")

ENDING_TRIES = 5
ENDING_PAUSE_SECONDS = 1.0
