"""Toys: synthetic tasks with a known optimum."""

from __future__ import annotations

from bonsaigpt.config import AddData, CopyData, RecallData, SortData, TaskData
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.toys.add import Add
from bonsaigpt.data.toys.copy import Copy
from bonsaigpt.data.toys.recall import Recall
from bonsaigpt.data.toys.sort import Sort
from bonsaigpt.data.toys.task import Task, TaskBatches

__all__ = ["Task", "TaskBatches", "task_batches"]


def task_batches(config: TaskData, *, seed: int, plan: BatchPlan) -> TaskBatches:
    """The batches of a toy with an answer."""
    return TaskBatches(_task(config), seed=seed, plan=plan)


def _task(config: TaskData) -> Task:
    match config:
        case SortData():
            return Sort(config)
        case AddData():
            return Add(config)
        case CopyData():
            return Copy(config)
        case RecallData():
            return Recall(config)
        case _:
            raise TypeError(f"{type(config).__name__} is no toy with an answer")
