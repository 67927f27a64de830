"""What a network is for: reading a task's data, and the metric on what it holds out."""

from isthmus.tasks.metrics import evaluate
from isthmus.tasks.reading import load_task
from isthmus.tasks.task import HeldOut, Metric, Task

__all__ = ["HeldOut", "Metric", "Task", "evaluate", "load_task"]
