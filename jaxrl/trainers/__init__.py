"""Trainers: train, evaluate, checkpoint, resume."""

from jaxrl.trainers.build import build_trainer, default_execution_plan
from jaxrl.trainers.config import CommonConfig
from jaxrl.trainers.trainer import Trainer

__all__ = ["CommonConfig", "Trainer", "build_trainer", "default_execution_plan"]
